import type { Engine } from "./engine.ts";
import type { EventHub } from "./events/hub.ts";
import { StoreUnavailable } from "./store/database.ts";
import type { Database } from "./store/database.ts";
import { Refusal } from "./turn/failures.ts";
import type { Turn } from "./turn/turn.ts";

/**
 * Begins a turn's first step in this process, and calls `tell` to have Temporal told of the turn.
 *
 * @returns false, and does nothing, where there is too much to do.
 */
export type HeadStart = (turn: Turn, tell: () => Promise<void>) => boolean;

export interface ClientParts {
  database: Database;
  hub: EventHub;
  engine: Engine;
  /** Where this process is a worker too: begins a turn while Temporal is being told. */
  headStart?: HeadStart;
}

/**
 * Translates a database out of reach into what callers are told.
 *
 * @throws Refusal `store_unavailable`.
 */
export async function reachable<Result>(work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof StoreUnavailable)) throw error;
    const problem =
      "The database is out of reach. Try again; a start with an idempotency key is safe to repeat.";
    throw new Refusal("store_unavailable", problem, null, { cause: error });
  }
}
