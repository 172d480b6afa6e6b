import type { Logger } from "pino";
import type { Queryable } from "../store/database.ts";
import { clearCancelTimes, setCancelTime } from "../store/disconnects.ts";
import { repeatEvery } from "../store/repeat.ts";
import type { Turn } from "../turn/turn.ts";

/** Well within the shortest grace period: another gateway may have seen its last follower go. */
const clearEveryMs = 1_000;

/**
 * The connections of this gateway that follow turns which are to end with their followers. When the
 * last one of a turn breaks, the turn gets a time at which it is cancelled [12]; a turn that is followed at
 * any gateway loses it again.
 */
export class Followers {
  readonly #database: Queryable;
  readonly #log: Logger;
  readonly #connections = new Map<string, number>();
  readonly #clearing = new Set<Promise<void>>();
  readonly #leaving = new Set<Promise<void>>();
  readonly #stop: () => void;

  constructor(database: Queryable, log: Logger) {
    this.#database = database;
    this.#log = log;
    this.#stop = repeatEvery(clearEveryMs, () => this.#clear([...this.#connections.keys()]));
  }

  /**
   * Answers a caller who counts as a follower of the turn meanwhile.
   *
   * @param signal aborts when the caller's connection is broken or given up.
   */
  async answer<Result>(
    turn: Turn,
    signal: AbortSignal,
    answer: () => Promise<Result>,
  ): Promise<Result> {
    const { id } = turn;
    if (turn.disconnectGraceMs === null) return answer();
    this.#connections.set(id, (this.#connections.get(id) ?? 0) + 1);
    await this.#clear([id]);
    try {
      return await answer();
    } finally {
      const left = (this.#connections.get(id) ?? 0) - 1;
      if (left > 0) this.#connections.set(id, left);
      else this.#connections.delete(id);
      if (left === 0 && signal.aborted) await this.#noteLeft(turn);
    }
  }

  /** Waits until everything that was seen is on record. */
  async close(): Promise<void> {
    this.#stop();
    await Promise.all(this.#leaving);
  }

  async #clear(turnIds: readonly string[]): Promise<void> {
    if (turnIds.length === 0) return;
    const cleared = clearCancelTimes(this.#database, turnIds).catch((error: unknown) => {
      this.#log.warn({ err: error }, "followers of turns were not recorded");
    });
    await during(this.#clearing, cleared);
  }

  async #noteLeft({ project, id }: Turn): Promise<void> {
    // What was sent while they followed must not come after their leaving.
    const noted = Promise.all(this.#clearing)
      .then(() => setCancelTime(this.#database, project, id))
      .catch((error: unknown) => {
        this.#log.warn({ err: error, turn: id }, "the last follower's leaving was not recorded");
      });
    await during(this.#leaving, noted);
  }
}

/** Waits for the work, which is in the set meanwhile. */
async function during(set: Set<Promise<void>>, work: Promise<void>): Promise<void> {
  set.add(work);
  await work;
  set.delete(work);
}
