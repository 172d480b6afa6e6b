import { setTimeout as delay } from "node:timers/promises";
import { reachable } from "./clientParts.ts";
import type { ClientParts } from "./clientParts.ts";
import { batchOf, defaultBatchLimits } from "./events/batch.ts";
import { StoreUnavailable } from "./store/database.ts";
import { readEventsAfter, readProgress } from "./store/eventLog.ts";
import { readTurn } from "./store/turns.ts";
import { isTerminalEvent, recordedType } from "./turn/events.ts";
import type { RecordedEvent } from "./turn/events.ts";
import { Refusal } from "./turn/failures.ts";
import { isTerminal } from "./turn/turn.ts";
import type { Turn } from "./turn/turn.ts";

const rereadMs = 100;

/** Reads again until the database answers. */
async function whenReachable<Read>(
  signal: AbortSignal | undefined,
  read: () => Promise<Read>,
): Promise<Read> {
  for (;;) {
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error;
    }
    await pause(signal);
  }
}

function pause(signal: AbortSignal | undefined): Promise<void> {
  return delay(rereadMs, undefined, signal === undefined ? {} : { signal });
}

/**
 * Recorded events of a turn in batches, as a handle's `events` gives them one by one. What
 * can be refused is refused before the first batch.
 *
 * @throws Refusal `stream_expired`, or `invalid_value` when `after` is a number from the future.
 */
export async function watchTurn(
  parts: ClientParts,
  turn: Turn,
  options: { after?: number; signal?: AbortSignal } = {},
): Promise<AsyncIterable<RecordedEvent[]>> {
  const after = options.after ?? -1;
  const last = after < 0 ? after : (await progressOf(parts, turn)).lastNumber;
  if (after > last) {
    // It would keep the hub from seeing what comes before that number.
    const problem = `The last event of this response so far has number ${last}.`;
    throw new Refusal("invalid_value", problem, "starting_after");
  }
  if (isTerminal(turn.status)) return readEnded(parts, turn, await readPage(parts, turn, after));
  return parts.hub.subscribe(turn, after, options.signal);
}

/**
 * Waits until the turn is terminal, and returns its record. A database that is away does not end
 * the turn, so it does not end the wait either.
 */
export async function waitForTurnEnd(
  parts: ClientParts,
  turn: Turn,
  signal?: AbortSignal,
): Promise<Turn> {
  if (isTerminal(turn.status)) return turn;
  // From the last number on: only the end matters, not what was written before it.
  const progress = await whenReachable(signal, () => readProgress(parts.database, turn.id));
  if (!isTerminal(progress.status)) {
    const rest = parts.hub.subscribe(turn, progress.lastNumber, signal);
    for await (const _batch of rest) signal?.throwIfAborted();
  }
  signal?.throwIfAborted();
  for (;;) {
    const read = await whenReachable(signal, () => readTurn(parts.database, turn.project, turn.id));
    if (read !== null && isTerminal(read.status)) return read;
    await pause(signal);
  }
}

async function* readEnded(
  parts: ClientParts,
  turn: Turn,
  first: RecordedEvent[],
): AsyncGenerator<RecordedEvent[]> {
  let page = first;
  for (;;) {
    const last = page.at(-1);
    if (last === undefined) return;
    yield page;
    if (isTerminalEvent(recordedType(last.body))) return;
    page = await readPage(parts, turn, last.sequenceNumber);
  }
}

/** What comes after a number, as much of it as one subscriber may hold. */
async function readPage(parts: ClientParts, turn: Turn, after: number): Promise<RecordedEvent[]> {
  const { database } = parts;
  const { maxBatchEvents } = defaultBatchLimits;
  const cursors = [{ ...turn, after }];
  const pages = await reachable(() => readEventsAfter(database, cursors, maxBatchEvents));
  const page = batchOf(pages.get(turn.id) ?? [], 0, defaultBatchLimits);
  const isWhole = page[0] !== undefined && page[0].sequenceNumber === after + 1;
  if (isWhole || after >= (await progressOf(parts, turn)).lastNumber) return page;
  const advice = "Retrieve the response without 'stream' instead.";
  throw new Refusal("stream_expired", `The events of this response have been dropped. ${advice}`);
}

function progressOf(parts: ClientParts, turn: Turn): ReturnType<typeof readProgress> {
  return reachable(() => readProgress(parts.database, turn.id));
}
