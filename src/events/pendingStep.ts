import type { FlushEntry, ResponsePlace } from "../store/eventLog.ts";
import type { Fence } from "../store/fence.ts";
import { eventBody } from "../turn/events.ts";
import type { TurnEvent } from "../turn/events.ts";
import { mergeDeltas } from "./merge.ts";

/** What the owner of a step has to hear; the first two end its way into the log. */
export interface StepListeners {
  /** The step belongs to somebody else. */
  fenced: () => void;
  /** The database refuses what was written; nothing more of the step will be. */
  failed: (error: unknown) => void;
  /** The turn is to be cancelled. May be told more than once. */
  cancelRequested: () => void;
}

interface Waiter {
  resolve: () => void;
  reject: (error: unknown) => void;
  signal: AbortSignal;
}

/** A step with what of it is not on record yet. */
export interface PendingStep {
  fence: Fence;
  events: TurnEvent[];
  bytes: number;
  nextOutputIndex: number;
  /** What is queued goes up to here; `null`: nothing new. */
  place: ResponsePlace | null;
  flush: number;
  /** The write that was sent and whose outcome is not known: it is sent again as it was. */
  sent: FlushEntry | null;
  hasWritten: boolean;
  hasReached: boolean;
  closed: boolean;
  failure: { error: unknown } | null;
  on: StepListeners;
  waiters: Waiter[];
}

export function pendingStep(fence: Fence, on: StepListeners): PendingStep {
  return {
    fence,
    events: [],
    bytes: 0,
    nextOutputIndex: 0,
    place: null,
    flush: 0,
    sent: null,
    hasWritten: false,
    hasReached: false,
    closed: false,
    failure: null,
    on,
    waiters: [],
  };
}

/** Roughly the bytes that an event takes: good enough for a bound, and cheap for a delta. */
export function sizeOf(event: TurnEvent): number {
  const envelopeBytes = 256;
  let bytes = envelopeBytes;
  for (const value of Object.values(event)) {
    if (typeof value === "string") bytes += value.length;
    else if (typeof value === "object") bytes += JSON.stringify(value).length;
  }
  return bytes;
}

export function hasWork(step: PendingStep): boolean {
  return step.sent !== null || step.events.length > 0 || step.place !== null;
}

/** Takes everything that is queued, as one write. */
export function nextEntry(step: PendingStep): FlushEntry {
  step.flush += 1;
  const bodies = mergeDeltas(step.events).map(eventBody);
  const { fence, flush, nextOutputIndex, place } = step;
  step.events = [];
  step.bytes = 0;
  step.place = null;
  return { ...fence, flush, bodies, nextOutputIndex, place };
}
