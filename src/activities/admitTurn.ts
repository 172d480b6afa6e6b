import { ApplicationFailure, Context } from "@temporalio/activity";
import { admitTurn as putOnRecord, unknownProject } from "../store/admission.ts";
import type { Interruption } from "../store/admission.ts";
import { listAgents } from "../store/agents.ts";
import { hasProject } from "../store/apiKeys.ts";
import { readRequestHash, readTurnOfWorkflow } from "../store/turns.ts";
import type { DirectStart } from "../turn/directStart.ts";
import { maxDirectInputBytes } from "../turn/directStart.ts";
import { Refusal } from "../turn/failures.ts";
import { prepareTurn } from "../turn/prepare.ts";
import { checkId } from "../turn/request.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import { turnEnd } from "../turn/verdict.ts";
import type { TurnEnd } from "../turn/verdict.ts";
import { tellOfEnding } from "./finishTurn.ts";
import type { Parts } from "./parts.ts";
import { retryLater } from "./stepContext.ts";

export type DirectAdmission =
  | { state: "admitted" }
  | { state: "queued" }
  | ({ state: "ended" } & TurnEnd);

function admissionOf(turn: Turn): DirectAdmission {
  if (isTerminal(turn.status)) return { state: "ended", ...turnEnd(turn.status, turn.failure) };
  return { state: turn.status === "queued" ? "queued" : "admitted" };
}

/** The `admitTurn` activity: puts a turn that was started directly in Temporal on record [1]. */
export function createAdmitTurn(parts: Parts) {
  // Whatever a program in another language has sent.
  return async function admitTurn(start: unknown): Promise<DirectAdmission> {
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

const startFields = new Set(["project", "when_busy", "request"]);
const busyModes: ReadonlySet<unknown> = new Set(["queue", "reject", "interrupt"]);

/** Checks what the request's own check does not: the argument around it. */
function checkStart(start: unknown): Required<Pick<DirectStart, "when_busy">> & DirectStart {
  if (typeof start !== "object" || start === null || !("request" in start)) {
    const shape = '{"project": "default", "request": {"input": "..."}}';
    const problem = `The workflow's argument must be an object such as ${shape}.`;
    throw new Refusal("missing_required_parameter", problem, "request");
  }
  const unknown = Object.keys(start).find((field) => !startFields.has(field));
  if (unknown !== undefined) {
    const problem = `The workflow's argument has no field '${unknown}'; put it into 'request'.`;
    throw new Refusal("unknown_parameter", problem, unknown);
  }
  if (Buffer.byteLength(JSON.stringify(start)) > maxDirectInputBytes) {
    const advice = "Put the input into the conversation over HTTP first, or start the turn there.";
    throw new Refusal(
      "body_too_large",
      `The argument exceeds ${maxDirectInputBytes} bytes. ${advice}`,
    );
  }
  const given = start as DirectStart;
  const when_busy = given.when_busy ?? "queue";
  if (!busyModes.has(when_busy)) {
    const problem = "'when_busy' must be 'queue', 'reject' or 'interrupt'.";
    throw new Refusal("invalid_value", problem, "when_busy");
  }
  return { ...given, when_busy };
}

async function admitDirectly(
  parts: Parts,
  turnId: string,
  argument: unknown,
): Promise<DirectAdmission> {
  checkId(turnId, "workflow id");
  const start = checkStart(argument);
  const project = checkId(start.project ?? "default", "project");
  if (!(await hasProject(parts.database, project))) {
    throw unknownProject(project);
  }
  const prepared = prepareTurn(start.request, await listAgents(parts.database));
  const before = await readTurnOfWorkflow(parts.database, turnId);
  if (before !== null) {
    const hash = await readRequestHash(parts.database, turnId);
    if (before.project === project && hash?.equals(prepared.requestHash))
      return admissionOf(before);
    throw new Refusal(
      "idempotency_key_reused",
      "This workflow id was used with another request; use a new id for a new request.",
    );
  }
  const { turn, interrupted } = await putOnRecord(parts.database, {
    ...prepared,
    turnId,
    project,
    idempotencyKey: null,
    apiKeyId: null,
    whenBusy: start.when_busy,
    disconnectGraceMs: null,
  });
  if (interrupted !== null) await tellOfInterruption(parts, turn.id, interrupted);
  return admissionOf(turn);
}

/** What of it fails is made up for by the worker's reread of the record, and by the janitor. */
async function tellOfInterruption(
  parts: Parts,
  turnId: string,
  { turnId: interruptedId, cancelled }: Interruption,
): Promise<void> {
  if (cancelled.outcome === "requested") {
    await parts.database.notify("turnkeeper_cancels", interruptedId).catch(() => {});
  } else {
    const granted = cancelled.granted === turnId ? null : cancelled.granted;
    tellOfEnding(parts, { ...cancelled, granted });
  }
  await parts.cancelWorkflow(interruptedId).catch(() => {});
}

/**
 * Whoever grants a turn tells its workflow; where that process dies before, the next attempt finds it. Those
 * leave no events in history.
 */
const lookAgainMs = 5_000;

/** The `awaitGrant` activity: succeeds once the turn holds its conversation, or has ended. */
export function createAwaitGrant(parts: Parts) {
  return async function awaitGrant(): Promise<void> {
    const turnId = Context.current().info.workflowExecution?.workflowId ?? "";
    const turn = await readTurnOfWorkflow(parts.database, turnId);
    if (turn?.status === "queued") throw retryLater("conversation_busy", lookAgainMs);
  };
}
