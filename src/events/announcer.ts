import type { Database } from "../store/database.ts";
import type { RecordedEvent } from "../turn/events.ts";
import type { EventHub } from "./hub.ts";

/** Notifications of one process are at least this far apart; the first one goes at once. */
const minIntervalMs = 5;

/** The same where writes are more frequent than the ticks of a worker without subscribers. */
const minIntervalWithHubMs = 15;

/**
 * Tells of committed events: the subscribers of this process by handing them over, the others by a
 * notification that names no turns and makes them read.
 */
export class Announcer {
  readonly #database: Database;
  readonly #hub: EventHub | undefined;
  readonly #minIntervalMs: number;
  #notifiedAt = Number.NEGATIVE_INFINITY;
  #timer: NodeJS.Timeout | null = null;

  constructor(database: Database, hub: EventHub | undefined) {
    this.#database = database;
    this.#hub = hub;
    this.#minIntervalMs = hub === undefined ? minIntervalMs : minIntervalWithHubMs;
  }

  announce(turnId: string, events: readonly RecordedEvent[]): void {
    if (events.length === 0) return;
    this.#hub?.publish(turnId, events);
    if (this.#timer !== null) return;
    const waitMs = Math.max(0, this.#notifiedAt + this.#minIntervalMs - performance.now());
    this.#timer = setTimeout(() => this.#notify(), waitMs);
  }

  #notify(): void {
    this.#timer = null;
    this.#notifiedAt = performance.now();
    // A lost notification costs other processes no more than their next reread.
    this.#database.notify("turnkeeper_events", this.#hub?.id ?? "").catch(() => {});
  }
}
