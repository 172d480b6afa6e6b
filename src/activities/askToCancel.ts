import { cancelTurn } from "../store/cancels.ts";
import { readTurnOfWorkflow } from "../store/turns.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import type { TurnEnd } from "../turn/verdict.ts";
import { tellOfEnding } from "./finishTurn.ts";
import type { Parts } from "./parts.ts";

/**
 * Sets the flag and wakes the worker that runs the step [12]. Returns how the turn has ended, if nobody
 * was at it.
 */
export async function askToCancel(parts: Parts, turn: Turn): Promise<TurnEnd | null> {
  const asked = await cancelTurn(parts.database, turn);
  if (asked.outcome === "requested") {
    await parts.database.notify("turnkeeper_cancels", turn.id);
    return null;
  }
  tellOfEnding(parts, asked);
  const { status, failureClass } = asked;
  return { status, ...(failureClass === undefined ? {} : { failureClass }) };
}

/**
 * What a workflow's cancel sets off at once. Nobody waits for it, and where it fails the turn's `endTurn`
 * does the same.
 */
export function createCancelRelay(parts: Parts) {
  const relay = async (turnId: string, runId: string): Promise<void> => {
    const turn = await readTurnOfWorkflow(parts.database, turnId);
    if (turn === null || isTerminal(turn.status)) return;
    // A run that was reset away has no say any more [3].
    if (turn.runId === null || turn.runId === runId) await askToCancel(parts, turn);
  };
  return ({ workflowId, runId }: { workflowId: string; runId: string }): void => {
    relay(workflowId, runId).catch((error: unknown) => {
      parts.log.warn({ turn: workflowId, error: String(error) }, "a cancel waits for its activity");
    });
  };
}
