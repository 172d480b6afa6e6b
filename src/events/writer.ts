import { setTimeout as delay } from "node:timers/promises";
import { StoreUnavailable } from "../store/database.ts";
import type { Database } from "../store/database.ts";
import { flushEvents } from "../store/eventLog.ts";
import type { FlushEntry, FlushOutcome } from "../store/eventLog.ts";
import type { Fence } from "../store/fence.ts";
import { eventBody } from "../turn/events.ts";
import type { RecordedEvent, TurnEvent } from "../turn/events.ts";
import { mergeDeltas } from "./merge.ts";

export interface EventWriterSettings {
  /** Time between two writes while events keep coming. */
  tickMs: number;
  /** The tick stretches with the duration of writes up to this. */
  maxTickMs: number;
  /** A step whose unwritten events exceed this has to wait before it reads more of its stream. */
  maxPendingBytes: number;
}

export const defaultEventWriterSettings: EventWriterSettings = {
  tickMs: 15,
  maxTickMs: 200,
  maxPendingBytes: 1024 * 1024,
};

const retryWriteMs = 250;

/** Told of events as soon as they are committed, in the process that wrote them. */
export type OnCommitted = (turnId: string, events: readonly RecordedEvent[]) => void;

/** A step's way into the event log. */
export interface StepWriter {
  /** Queues an event. Awaiting the result keeps a fast stream from outrunning the database. */
  append(event: TurnEvent, nextOutputIndex: number): Promise<void> | undefined;
  /** Waits until everything queued is on record. */
  flush(): Promise<void>;
  /** Waits for the write under way and hands over what was not written, for the ending. */
  drain(): Promise<TurnEvent[]>;
  /** Forgets what was not written. */
  discard(): void;
}

interface PendingStep {
  fence: Fence;
  events: TurnEvent[];
  bytes: number;
  nextOutputIndex: number;
  flush: number;
  /** The write that was sent and whose outcome is not known: it is sent again as it was. */
  sent: FlushEntry | null;
  hasWritten: boolean;
  fenced: boolean;
  closed: boolean;
  onFenced: () => void;
  onCancelRequested: () => void;
  waiters: (() => void)[];
}

/**
 * Writes the events of all running steps of this process, in one statement per tick. One write is in
 * flight at a time; one whose answer was lost is sent again and stores nothing twice [3].
 */
export class EventWriter {
  readonly #database: Database;
  readonly #settings: EventWriterSettings;
  readonly #onCommitted: OnCommitted;
  readonly #steps = new Set<PendingStep>();
  #writing: Promise<void> | null = null;
  #timer: NodeJS.Timeout | null = null;
  #tickMs: number;
  #wroteAt = Number.NEGATIVE_INFINITY;
  /** Somebody waits for the write after the one under way. */
  #isUrgent = false;

  constructor(
    database: Database,
    onCommitted: OnCommitted,
    settings: EventWriterSettings = defaultEventWriterSettings,
  ) {
    this.#database = database;
    this.#onCommitted = onCommitted;
    this.#settings = settings;
    this.#tickMs = settings.tickMs;
  }

  /**
   * Opens the way for a claimed step. `onFenced` is called once when the step turns out to belong to
   * somebody else, `onCancelRequested` when its turn is to be cancelled.
   */
  open(fence: Fence, on: { fenced: () => void; cancelRequested: () => void }): StepWriter {
    const step: PendingStep = {
      fence,
      events: [],
      bytes: 0,
      nextOutputIndex: 0,
      flush: 0,
      sent: null,
      hasWritten: false,
      fenced: false,
      closed: false,
      onFenced: on.fenced,
      onCancelRequested: on.cancelRequested,
      waiters: [],
    };
    this.#steps.add(step);
    return {
      append: (event, nextOutputIndex) => this.#append(step, event, nextOutputIndex),
      flush: () => this.#flushed(step),
      drain: () => this.#drain(step),
      discard: () => this.#close(step),
    };
  }

  #append(step: PendingStep, event: TurnEvent, nextOutputIndex: number): Promise<void> | undefined {
    if (step.fenced || step.closed) return undefined;
    step.events.push(event);
    step.nextOutputIndex = nextOutputIndex;
    const delta = event["delta"];
    // A guess that is good enough for a bound: the envelope of an event is about this long.
    const envelopeBytes = 256;
    step.bytes += envelopeBytes + (typeof delta === "string" ? delta.length : 0);
    this.#schedule(this.#isFirstDelta(step, event) ? 0 : this.#untilTickMs());
    if (step.bytes <= this.#settings.maxPendingBytes) return undefined;
    return this.#flushed(step);
  }

  /** The first words of an answer do not wait for a tick. */
  #isFirstDelta(step: PendingStep, event: TurnEvent): boolean {
    if (step.hasWritten || typeof event["delta"] !== "string") return false;
    step.hasWritten = true;
    return true;
  }

  /** Ticks are counted from write to write, so that the duration of a write is not added to them. */
  #untilTickMs(): number {
    return Math.max(0, this.#wroteAt + this.#tickMs - performance.now());
  }

  #schedule(inMs: number): void {
    if (this.#writing !== null) {
      this.#isUrgent ||= inMs === 0;
      return;
    }
    if (this.#timer !== null) {
      if (inMs > 0) return;
      clearTimeout(this.#timer);
    }
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#write();
    }, inMs);
  }

  #write(): void {
    if (this.#writing !== null) return;
    const startedAt = performance.now();
    this.#wroteAt = startedAt;
    this.#writing = this.#writeAll()
      .catch(() => delay(retryWriteMs))
      .then(() => {
        const tookMs = performance.now() - startedAt;
        const { tickMs, maxTickMs } = this.#settings;
        this.#tickMs = Math.min(maxTickMs, Math.max(tickMs, tookMs * 2));
        this.#writing = null;
        for (const step of this.#steps) this.#wake(step);
        const inMs = this.#isUrgent ? 0 : this.#untilTickMs();
        this.#isUrgent = false;
        if ([...this.#steps].some((step) => hasWork(step))) this.#schedule(inMs);
      });
  }

  async #writeAll(): Promise<void> {
    const steps = [...this.#steps].filter(hasWork);
    if (steps.length === 0) return;
    for (const step of steps) step.sent ??= nextEntry(step);
    await this.#send(steps).catch((error: unknown) => {
      if (error instanceof StoreUnavailable) throw error;
      // One step's events are at fault; the others must not suffer for it.
      return this.#sendEach(steps);
    });
  }

  async #send(steps: readonly PendingStep[]): Promise<void> {
    const entries = steps.map((step) => step.sent as FlushEntry);
    const outcomes = await flushEvents(this.#database, entries);
    for (const [at, step] of steps.entries()) {
      this.#settle(step, entries[at] as FlushEntry, outcomes[at] as FlushOutcome);
    }
  }

  async #sendEach(steps: readonly PendingStep[]): Promise<void> {
    for (const step of steps) {
      try {
        await this.#send([step]);
      } catch (error) {
        if (error instanceof StoreUnavailable) throw error;
        this.#fail(step);
      }
    }
  }

  #fail(step: PendingStep): void {
    step.fenced = true;
    this.#close(step);
    step.onFenced();
  }

  #settle(step: PendingStep, entry: FlushEntry, outcome: FlushOutcome): void {
    // Closed while the write was under way: its owner wants to hear nothing more.
    if (step.closed) return;
    if (outcome.state === "locked") return;
    step.sent = null;
    if (outcome.cancelRequested) step.onCancelRequested();
    if (outcome.state === "fenced") {
      this.#fail(step);
    } else if (outcome.first !== null) {
      const first = outcome.first;
      const events = entry.bodies.map((body, at) => ({ sequenceNumber: first + at, body }));
      this.#onCommitted(entry.turnId, events);
    }
  }

  #wake(step: PendingStep): void {
    if (hasWork(step) && !step.fenced) return;
    for (const waiter of step.waiters.splice(0)) waiter();
  }

  #flushed(step: PendingStep): Promise<void> {
    if (!hasWork(step) || step.fenced) return Promise.resolve();
    const done = new Promise<void>((resolve) => step.waiters.push(resolve));
    this.#schedule(0);
    return done;
  }

  /** An unfinished write must be settled first: its events may already be on record. */
  async #drain(step: PendingStep): Promise<TurnEvent[]> {
    while (this.#writing !== null && step.sent !== null) await this.#writing;
    if (step.sent !== null) await this.#flushed(step);
    const rest = mergeDeltas(step.events);
    this.#close(step);
    return rest;
  }

  #close(step: PendingStep): void {
    step.closed = true;
    step.events = [];
    step.sent = null;
    this.#steps.delete(step);
    this.#wake(step);
  }
}

function hasWork(step: PendingStep): boolean {
  return step.sent !== null || step.events.length > 0;
}

function nextEntry(step: PendingStep): FlushEntry {
  step.flush += 1;
  const bodies = mergeDeltas(step.events).map(eventBody);
  step.events = [];
  step.bytes = 0;
  return { ...step.fence, flush: step.flush, bodies, nextOutputIndex: step.nextOutputIndex };
}
