import type { RecordedEvent } from "../turn/events.ts";

export interface BatchLimits {
  /** Events that one subscriber is given at a time: all that a slow one holds in memory. */
  maxBatchEvents: number;
  /** Bytes that one subscriber is given at a time, if it is more than one event. */
  maxBatchBytes: number;
}

export const defaultBatchLimits: BatchLimits = {
  maxBatchEvents: 64,
  maxBatchBytes: 64 * 1024,
};

/** As much from `start` on as one subscriber may hold; at least one event, if there is one. */
export function batchOf(
  events: readonly RecordedEvent[],
  start: number,
  { maxBatchEvents, maxBatchBytes }: BatchLimits,
): RecordedEvent[] {
  let end = start;
  let bytes = 0;
  while (end < events.length && end - start < maxBatchEvents) {
    bytes += events[end]?.body.length ?? 0;
    if (bytes > maxBatchBytes && end > start) break;
    end += 1;
  }
  return events.slice(start, end);
}
