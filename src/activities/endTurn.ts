import { setTimeout as delay } from "node:timers/promises";
import { Context } from "@temporalio/activity";
import type { Ending } from "../store/endings.ts";
import { isAtWork } from "../store/steps.ts";
import { readTurnOfWorkflow } from "../store/turns.ts";
import { failure } from "../turn/failures.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import { turnEnd } from "../turn/verdict.ts";
import type { TurnEnd } from "../turn/verdict.ts";
import { askToCancel } from "./askToCancel.ts";
import { finishTurn } from "./finishTurn.ts";
import type { Parts } from "./parts.ts";
import { failForGood, retryLater } from "./stepContext.ts";

/**
 * Why the workflow ends a turn itself: the client has calls to answer, the turn was cancelled, or
 * an activity failed for good.
 */
export type EndReason = "calls_for_client" | "cancelled" | "activity_failed";

/** The owner of a running step has this long to end a cancelled turn with its partial answer. */
const ownerGraceMs = 1_000;
const pollEveryMs = 50;

/** The `endTurn` activity: every way a turn can end that is not the end of a step. */
export function createEndTurn(parts: Parts) {
  return async function endTurn(input: { reason: EndReason }): Promise<TurnEnd> {
    const { workflowId: turnId = "", runId } = Context.current().info.workflowExecution ?? {};
    const turn = await readTurnOfWorkflow(parts.database, turnId);
    if (turn === null) throw failForGood("unknown_turn");
    if (isTerminal(turn.status)) return turnEnd(turn.status, turn.failure);
    const isOther = turn.runId !== null && turn.runId !== runId;
    // A run that was reset away has no say any more [3].
    if (isOther && (await parts.currentRun(turnId)) !== runId) throw retryLater("fenced");
    if (input.reason === "cancelled") {
      const ended = await askOwner(parts, turn);
      if (ended !== null) return ended;
    }
    // Asked for while the tools ran, whose steps were stopped for it.
    const isCancelled = input.reason === "calls_for_client" && turn.cancelRequestedAt !== null;
    const { next: _, ...end } = await finishTurn(
      parts,
      turn,
      endingFor(isCancelled ? "cancelled" : input.reason),
      { ifRunId: turn.runId },
      Context.current().cancellationSignal,
    );
    return end;
  };
}

function endingFor(reason: EndReason): Ending {
  switch (reason) {
    case "calls_for_client":
      return { status: "completed" };
    case "cancelled":
      return { status: "cancelled" };
    case "activity_failed":
      return { status: "failed", failure: failure("attempts_exhausted") };
  }
}

/** Waits for the owner to end the turn; `null` when there is nobody to wait for. */
async function askOwner(parts: Parts, turn: Turn): Promise<TurnEnd | null> {
  const ended = await askToCancel(parts, turn);
  if (ended !== null) return ended;
  const giveUpAt = Date.now() + ownerGraceMs;
  while (Date.now() < giveUpAt) {
    const isOwned = await isAtWork(parts.database, turn.id);
    const now = await readTurnOfWorkflow(parts.database, turn.id);
    if (now !== null && isTerminal(now.status)) return turnEnd(now.status, now.failure);
    if (!isOwned) return null;
    await delay(pollEveryMs);
  }
  return null;
}
