import { setTimeout as delay } from "node:timers/promises";
import type { Database, Subscription } from "../store/database.ts";
import { readEventsAfter } from "../store/eventLog.ts";
import type { EventKey } from "../store/eventLog.ts";
import { isTerminalEvent, recordedType } from "../turn/events.ts";
import type { RecordedEvent } from "../turn/events.ts";
import { batchOf, defaultBatchLimits } from "./batch.ts";
import type { BatchLimits } from "./batch.ts";

export interface EventHubSettings extends BatchLimits {
  /** A lost notification costs at most this long. */
  rereadMs: number;
  /** Events of one turn that are read at a time, and at most kept in memory for its subscribers. */
  pageEvents: number;
  /** Bytes of one turn's events that are kept in memory for its subscribers. */
  maxRecentBytes: number;
}

export const defaultEventHubSettings: EventHubSettings = {
  rereadMs: 1_000,
  pageEvents: 512,
  maxRecentBytes: 1024 * 1024,
  ...defaultBatchLimits,
};

/** This process stops; the stream goes on by number elsewhere. */
export class HubClosed extends Error {
  readonly code = "closed";

  constructor() {
    super("Turnkeeper was closed while it waited for events; read on by number elsewhere.");
    this.name = "HubClosed";
  }
}

/** A turn that has subscribers here: what was read of it last, shared by all of them. */
interface WatchedTurn {
  key: EventKey;
  recent: RecordedEvent[];
  recentBytes: number;
  lastNumber: number;
  subscribers: number;
  waiters: Set<() => void>;
}

/**
 * Gives subscribers the events of turns by number [6]. All watched turns are read in one statement
 * when something was written; a subscriber holds no more than a cursor, so a slow one costs nothing
 * but its own time: what has left the shared memory it reads from the log.
 */
export class EventHub {
  /** Marks this process's own notifications: what they tell of was handed over before. */
  readonly id = crypto.randomUUID();
  readonly #database: Database;
  readonly #settings: EventHubSettings;
  readonly #watched = new Map<string, WatchedTurn>();
  readonly #closing = new AbortController();
  #subscription: Subscription | null = null;
  #reading: Promise<void> | null = null;
  #readAgain = false;
  #timer: NodeJS.Timeout | null = null;

  private constructor(database: Database, settings: EventHubSettings) {
    this.#database = database;
    this.#settings = settings;
  }

  /**
   * Listens for writes of all processes; rereading makes up for notifications that are lost.
   *
   * @throws StoreUnavailable when the database is away now.
   */
  static async open(
    database: Database,
    settings: EventHubSettings = defaultEventHubSettings,
  ): Promise<EventHub> {
    const hub = new EventHub(database, settings);
    hub.#subscription = await database.listen("turnkeeper_events", (from) => {
      if (from !== hub.id) hub.wake();
    });
    hub.#timer = setInterval(() => hub.wake(), settings.rereadMs);
    hub.#timer.unref();
    return hub;
  }

  /** Takes events that this process has just committed, before the notification comes back. */
  publish(turnId: string, events: readonly RecordedEvent[]): void {
    const turn = this.#watched.get(turnId);
    if (turn !== undefined) this.#take(turn, events);
  }

  /**
   * The events of a turn after number `after` (-1: from the beginning), in batches, until its
   * terminal event, without gaps and without repetition. Ends early when `signal` aborts.
   *
   * @throws HubClosed when the hub closes before: an end would look like the end of the turn.
   */
  async *subscribe(
    key: EventKey,
    after: number,
    signal?: AbortSignal,
  ): AsyncGenerator<RecordedEvent[], void, void> {
    const turn = this.#watch(key, after);
    const stop = AbortSignal.any([this.#closing.signal, ...(signal === undefined ? [] : [signal])]);
    let cursor = after;
    try {
      while (!stop.aborted) {
        const batch = await this.#next(turn, cursor, stop);
        const last = batch.at(-1);
        if (last === undefined) continue;
        cursor = last.sequenceNumber;
        yield batch;
        if (isTerminalEvent(recordedType(last.body))) return;
      }
      if (signal?.aborted !== true) throw new HubClosed();
    } finally {
      turn.subscribers -= 1;
      if (turn.subscribers === 0) this.#watched.delete(key.id);
    }
  }

  async close(): Promise<void> {
    this.#closing.abort();
    if (this.#timer !== null) clearInterval(this.#timer);
    await this.#subscription?.close();
    await this.#reading;
  }

  #watch(key: EventKey, after: number): WatchedTurn {
    let turn = this.#watched.get(key.id);
    if (turn === undefined) {
      turn = {
        key,
        recent: [],
        recentBytes: 0,
        lastNumber: after,
        subscribers: 0,
        waiters: new Set(),
      };
      this.#watched.set(key.id, turn);
      this.wake();
    }
    turn.subscribers += 1;
    return turn;
  }

  async #next(turn: WatchedTurn, cursor: number, stop: AbortSignal): Promise<RecordedEvent[]> {
    const oldest = turn.recent[0]?.sequenceNumber ?? turn.lastNumber + 1;
    if (cursor + 1 >= oldest && cursor < turn.lastNumber) {
      return batchOf(turn.recent, cursor + 1 - oldest, this.#settings);
    }
    if (cursor < turn.lastNumber) return this.#readPage(turn.key, cursor, stop);
    await new Promise<void>((resolve) => {
      const wake = (): void => {
        turn.waiters.delete(wake);
        stop.removeEventListener("abort", wake);
        resolve();
      };
      turn.waiters.add(wake);
      stop.addEventListener("abort", wake);
    });
    return [];
  }

  async #readPage(key: EventKey, after: number, stop: AbortSignal): Promise<RecordedEvent[]> {
    try {
      const cursors = [{ ...key, after }];
      const pages = await readEventsAfter(this.#database, cursors, this.#settings.maxBatchEvents);
      const page = pages.get(key.id);
      if (page !== undefined) return batchOf(page, 0, this.#settings);
    } catch {
      // The database is away: the next try finds it or not.
    }
    await delay(this.#settings.rereadMs, undefined, { signal: stop }).catch(() => {});
    return [];
  }

  /** Something may have been written: read all watched turns. */
  wake(): void {
    if (this.#reading !== null) {
      this.#readAgain = true;
      return;
    }
    if (this.#watched.size === 0 || this.#closing.signal.aborted) return;
    this.#readAgain = false;
    this.#reading = this.#readWatched()
      // The next reread tries again.
      .catch(() => {})
      .finally(() => {
        this.#reading = null;
        if (this.#readAgain) this.wake();
      });
  }

  async #readWatched(): Promise<void> {
    const cursors = [...this.#watched.values()].map((turn) => ({
      ...turn.key,
      after: turn.lastNumber,
    }));
    const pages = await readEventsAfter(this.#database, cursors, this.#settings.pageEvents);
    for (const [turnId, events] of pages) {
      const turn = this.#watched.get(turnId);
      if (turn !== undefined) this.#take(turn, events);
      if (events.length === this.#settings.pageEvents) this.#readAgain = true;
    }
  }

  /** Adds events that follow what is known; others were known before or are read again later. */
  #take(turn: WatchedTurn, events: readonly RecordedEvent[]): void {
    const known = turn.lastNumber;
    for (const event of events) {
      // After a gap: another process wrote what comes before it, or it is being read.
      if (event.sequenceNumber > turn.lastNumber + 1) this.wake();
      if (event.sequenceNumber !== turn.lastNumber + 1) continue;
      turn.recent.push(event);
      turn.recentBytes += event.body.length;
      turn.lastNumber = event.sequenceNumber;
    }
    if (turn.lastNumber === known) return;
    this.#forgetOldest(turn);
    const woken = [...turn.waiters];
    for (const waiter of woken) waiter();
  }

  #forgetOldest(turn: WatchedTurn): void {
    let drop = Math.max(0, turn.recent.length - this.#settings.pageEvents);
    for (let at = 0; at < drop; at++) turn.recentBytes -= turn.recent[at]?.body.length ?? 0;
    while (turn.recentBytes > this.#settings.maxRecentBytes && drop < turn.recent.length - 1) {
      turn.recentBytes -= turn.recent[drop]?.body.length ?? 0;
      drop += 1;
    }
    if (drop > 0) turn.recent.splice(0, drop);
  }
}
