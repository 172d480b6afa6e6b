import { endTurn } from "../store/endings.ts";
import type { Ending, EndingCondition, LastStep } from "../store/endings.ts";
import type { Turn } from "../turn/turn.ts";
import type { TurnEnd } from "../turn/verdict.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { retryLater } from "./stepContext.ts";

/**
 * Ends a turn and tells everyone who waits: subscribers, and the next turns in the queue. A turn that
 * has ended meanwhile keeps its ending.
 *
 * @throws a retryable failure when this writer has been replaced; the retry reads the record.
 */
export async function finishTurn(
  parts: Parts,
  turn: Turn,
  ending: Ending,
  by: { lastStep?: LastStep } & EndingCondition,
  signal: AbortSignal,
): Promise<{ next: "end" } & TurnEnd> {
  const ended = await persist(() => endTurn(parts.database, turn, ending, by), signal);
  if (ended.outcome === "fenced") throw retryLater("fenced");
  if (ended.outcome === "ended") parts.tellOfEnding(ended);
  const { status, failureClass } = ended;
  return { next: "end", status, ...(failureClass === undefined ? {} : { failureClass }) };
}
