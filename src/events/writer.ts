import { setTimeout as delay } from "node:timers/promises";
import { StoreUnavailable } from "../store/database.ts";
import type { Queryable } from "../store/database.ts";
import { flushEvents } from "../store/eventLog.ts";
import type { FlushEntry, FlushOutcome, ResponsePlace } from "../store/eventLog.ts";
import type { Fence } from "../store/fence.ts";
import type { RecordedEvent, TurnEvent } from "../turn/events.ts";
import { mergeDeltas } from "./merge.ts";
import { hasWork, nextEntry, pendingStep, sizeOf } from "./pendingStep.ts";
import type { PendingStep, StepListeners } from "./pendingStep.ts";

export interface EventWriterSettings {
  /** Time between two writes while text keeps coming. */
  tickMs: number;
  /** What stands around the text waits so long for some to go with, or for the end of the step. */
  frameWaitMs: number;
  /** The tick stretches with the duration of writes up to this. */
  maxTickMs: number;
  /** A step whose unwritten events exceed this has to wait before it reads more of its stream. */
  maxPendingBytes: number;
}

export const defaultEventWriterSettings: EventWriterSettings = {
  tickMs: 15,
  frameWaitMs: 15,
  maxTickMs: 200,
  maxPendingBytes: 1024 * 1024,
};

/** The tick where subscribers are in the same process, which are handed what was written. */
export const inProcessTickMs = 5;

const retryWriteMs = 250;

/** Told of events as soon as they are committed, in the process that wrote them. */
export type OnCommitted = (turnId: string, events: readonly RecordedEvent[]) => void;

/**
 * A step's way into the event log. Once `signal` has aborted, waiting ends with the next write that
 * finds the database away.
 */
export interface StepWriter {
  /**
   * Queues an event. `false`: more is queued than should be; flush before you append more, so that a
   * fast stream does not outrun the database.
   */
  append(event: TurnEvent, nextOutputIndex: number): boolean;
  /**
   * Says that what has been appended so far goes up to this place of a response that the provider
   * keeps; the place is recorded with it [6], and by itself where nothing was appended.
   */
  reach(place: ResponsePlace): void;
  /**
   * Waits until nothing is queued any more: it is on record, or the step was fenced or has failed.
   *
   * @throws StoreUnavailable when `signal` aborts first.
   */
  flush(signal: AbortSignal): Promise<void>;
  /**
   * Waits for the write under way and hands over what was not written, for the ending.
   *
   * @throws StoreUnavailable when `signal` aborts first; the database's own error when it has refused
   *   a write: then the record has a hole, and what comes after it must not be recorded.
   */
  drain(signal: AbortSignal): Promise<TurnEvent[]>;
  /** Forgets what was not written. */
  discard(): void;
}

/**
 * Writes the events of all running steps of this process, in one statement per tick. One write is in
 * flight at a time; one whose answer was lost is sent again and stores nothing twice [3].
 */
export class EventWriter {
  readonly #database: Queryable;
  readonly #settings: EventWriterSettings;
  readonly #onCommitted: OnCommitted;
  readonly #steps = new Set<PendingStep>();
  #writing: Promise<void> | null = null;
  #timer: NodeJS.Timeout | null = null;
  #dueAt = 0;
  #tickMs: number;
  #wroteAt = Number.NEGATIVE_INFINITY;
  /** Somebody waits for the write after the one under way. */
  #isUrgent = false;

  constructor(
    database: Queryable,
    onCommitted: OnCommitted,
    settings: EventWriterSettings = defaultEventWriterSettings,
  ) {
    this.#database = database;
    this.#onCommitted = onCommitted;
    this.#settings = settings;
    this.#tickMs = settings.tickMs;
  }

  /** Opens the way for a claimed step. */
  open(fence: Fence, on: StepListeners): StepWriter {
    const step = pendingStep(fence, on);
    this.#steps.add(step);
    return {
      append: (event, nextOutputIndex) => this.#append(step, event, nextOutputIndex),
      reach: (place) => this.#reach(step, place),
      flush: (signal) => this.#flushed(step, signal),
      drain: (signal) => this.#drain(step, signal),
      discard: () => this.#close(step),
    };
  }

  #append(step: PendingStep, event: TurnEvent, nextOutputIndex: number): boolean {
    if (step.closed) return true;
    step.events.push(event);
    step.nextOutputIndex = nextOutputIndex;
    step.bytes += sizeOf(event);
    if (typeof event["delta"] !== "string") {
      // Nobody waits for what stands around the words; they take it along.
      this.#schedule(Math.max(this.#tickMs, this.#settings.frameWaitMs));
    } else if (step.hasWritten) {
      this.#schedule(this.#untilTickMs());
    } else {
      // The first words of an answer do not wait for a tick.
      step.hasWritten = true;
      this.#scheduleNow();
    }
    return step.bytes <= this.#settings.maxPendingBytes;
  }

  #reach(step: PendingStep, place: ResponsePlace): void {
    if (step.closed) return;
    // A number alone waits for the next event; until the id is on record a crash pays twice [7].
    if (step.events.length === 0 && step.hasReached) return;
    step.place = place;
    this.#schedule(step.hasReached ? this.#untilTickMs() : 0);
    step.hasReached = true;
  }

  /** Ticks are counted from write to write, so that the duration of a write is not added to them. */
  #untilTickMs(): number {
    return Math.max(0, this.#wroteAt + this.#tickMs - performance.now());
  }

  /** Somebody waits for the next write. */
  #scheduleNow(): void {
    this.#isUrgent ||= this.#writing !== null;
    this.#schedule(0);
  }

  #schedule(inMs: number): void {
    if (this.#writing !== null) return;
    const dueAt = performance.now() + inMs;
    if (this.#timer !== null) {
      if (dueAt >= this.#dueAt) return;
      clearTimeout(this.#timer);
    }
    this.#dueAt = dueAt;
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
      .catch((error: unknown) => {
        this.#giveUpWaiting(error);
        return delay(retryWriteMs);
      })
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
        step.failure = { error };
        this.#close(step);
        step.on.failed(error);
      }
    }
  }

  #settle(step: PendingStep, entry: FlushEntry, outcome: FlushOutcome): void {
    // Closed while the write was under way: its owner wants to hear nothing more.
    if (step.closed) return;
    if (outcome.state === "locked") return;
    step.sent = null;
    if (outcome.cancelRequested) step.on.cancelRequested();
    if (outcome.state === "fenced") {
      this.#close(step);
      step.on.fenced();
    } else if (outcome.first !== null) {
      const first = outcome.first;
      const events = entry.bodies.map((body, at) => ({ sequenceNumber: first + at, body }));
      this.#onCommitted(entry.turnId, events);
    }
  }

  #wake(step: PendingStep): void {
    if (hasWork(step)) return;
    for (const waiter of step.waiters.splice(0)) waiter.resolve();
  }

  /** Who was told to stop has waited for one try, and does not wait for the database to return. */
  #giveUpWaiting(error: unknown): void {
    for (const step of this.#steps) {
      const stopped = step.waiters.filter((waiter) => waiter.signal.aborted);
      step.waiters = step.waiters.filter((waiter) => !waiter.signal.aborted);
      for (const waiter of stopped) waiter.reject(error);
    }
  }

  #flushed(step: PendingStep, signal: AbortSignal): Promise<void> {
    if (!hasWork(step)) return Promise.resolve();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    step.waiters.push({ resolve, reject, signal });
    this.#scheduleNow();
    return promise;
  }

  /** An unfinished write must be settled first: its events may already be on record. */
  async #drain(step: PendingStep, signal: AbortSignal): Promise<TurnEvent[]> {
    while (this.#writing !== null && step.sent !== null) await this.#writing;
    if (step.sent !== null) await this.#flushed(step, signal);
    if (step.failure !== null) throw step.failure.error;
    const rest = mergeDeltas(step.events);
    this.#close(step);
    return rest;
  }

  #close(step: PendingStep): void {
    step.closed = true;
    step.events = [];
    step.place = null;
    step.sent = null;
    this.#steps.delete(step);
    this.#wake(step);
  }
}
