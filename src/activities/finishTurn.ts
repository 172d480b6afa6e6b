import { endTurn } from "../store/endings.ts";
import type { Aftermath, Ending, EndingCondition } from "../store/endings.ts";
import type { LastStep } from "../store/turnOutcome.ts";
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
  if (ended.outcome === "ended") tellOfEnding(parts, ended);
  const { status, failureClass } = ended;
  return { next: "end", status, ...(failureClass === undefined ? {} : { failureClass }) };
}

/** Tells subscribers, workflows and the provider what an ending did. */
export function tellOfEnding(
  parts: Pick<Parts, "announce" | "startGranted" | "cancelResponse">,
  { turns, granted, abandoned }: Aftermath,
): void {
  for (const responseId of abandoned) parts.cancelResponse(turns[0]?.id ?? "", responseId);
  for (const { id, events } of turns) parts.announce(id, events);
  // The workflow of one that was passed over may be waiting for the grant.
  for (const { id } of turns.slice(1)) parts.startGranted(id);
  if (granted !== null) parts.startGranted(granted);
}
