import { ApplicationFailure, Context } from "@temporalio/activity";
import { admitTurn as putOnRecord } from "../store/admission.ts";
import { listAgents } from "../store/agents.ts";
import { readTurnOfWorkflow } from "../store/turns.ts";
import type { DirectStart } from "../turn/directStart.ts";
import { maxDirectInputBytes } from "../turn/directStart.ts";
import { Refusal } from "../turn/failures.ts";
import { prepareTurn } from "../turn/prepare.ts";
import { checkId } from "../turn/request.ts";
import { isTerminal } from "../turn/turn.ts";
import type { TerminalStatus, Turn } from "../turn/turn.ts";
import type { Parts } from "./parts.ts";
import { retryLater } from "./stepContext.ts";

export type DirectAdmission =
  | { state: "admitted" }
  | { state: "queued" }
  | { state: "ended"; status: TerminalStatus };

function admissionOf(turn: Turn): DirectAdmission {
  if (isTerminal(turn.status)) return { state: "ended", status: turn.status };
  return { state: turn.status === "queued" ? "queued" : "admitted" };
}

/** The `admitTurn` activity: puts a turn that was started directly in Temporal on record [1]. */
export function createAdmitTurn(parts: Parts) {
  return async function admitTurn(start: DirectStart): Promise<DirectAdmission> {
    const turnId = Context.current().info.workflowExecution?.workflowId ?? "";
    try {
      return await admitDirectly(parts, turnId, start);
    } catch (error) {
      if (!(error instanceof Refusal) || error.httpStatus >= 500) throw error;
      const refused = ApplicationFailure.nonRetryable(
        `${error.code}: ${error.message}`,
        error.code,
      );
      refused.stack = "";
      throw refused;
    }
  };
}

async function admitDirectly(
  parts: Parts,
  turnId: string,
  start: DirectStart,
): Promise<DirectAdmission> {
  const before = await readTurnOfWorkflow(parts.database, checkId(turnId, "workflow id"));
  if (before !== null) return admissionOf(before);
  if (JSON.stringify(start).length > maxDirectInputBytes) {
    const advice = "Put the input into the conversation over HTTP first, or start the turn there.";
    throw new Refusal(
      "body_too_large",
      `The argument exceeds ${maxDirectInputBytes} bytes. ${advice}`,
    );
  }
  const project = checkId(start.project ?? "default", "project");
  const prepared = prepareTurn(start.request, await listAgents(parts.database));
  const { turn } = await putOnRecord(parts.database, {
    ...prepared,
    turnId,
    project,
    idempotencyKey: null,
    apiKeyId: null,
    whenBusy: start.when_busy ?? "queue",
  });
  parts.announce();
  return admissionOf(turn);
}

/** A notification can be lost, so a waiting turn looks again after this long. */
const lookAgainMs = 15_000;

/** The `awaitGrant` activity: succeeds once the turn holds its conversation, or has ended. */
export function createAwaitGrant(parts: Parts) {
  return async function awaitGrant(): Promise<void> {
    const turnId = Context.current().info.workflowExecution?.workflowId ?? "";
    const turn = await readTurnOfWorkflow(parts.database, turnId);
    if (turn?.status === "queued") throw retryLater("conversation_busy", lookAgainMs);
  };
}
