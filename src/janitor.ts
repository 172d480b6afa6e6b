import type { Logger } from "pino";
import type { Engine } from "./engine.ts";
import type { Database } from "./store/database.ts";
import { endTurn } from "./store/endings.ts";
import type { Ending } from "./store/endings.ts";
import {
  dropOldPartitions,
  findExpiredQueuedTurns,
  findStaleTurns,
  makePartitions,
  takeUpkeepTurn,
} from "./store/upkeep.ts";
import type { RecordedEvent } from "./turn/events.ts";
import { failure } from "./turn/failures.ts";
import type { Turn } from "./turn/turn.ts";

export interface JanitorSettings {
  /** Time between two rounds of the deployment. */
  roundMs: number;
  /** A turn younger than this is left to whoever admitted or granted it. */
  patienceMs: number;
  eventRetentionDays: number;
}

export const defaultJanitorSettings: JanitorSettings = {
  roundMs: 10_000,
  patienceMs: 10_000,
  eventRetentionDays: 30,
};

/** Turns that are read at a time; a round looks after all there are. */
const pageTurns = 200;
const partitionDaysAhead = 3;

const expired: Ending = { status: "incomplete", incompleteReason: "deadline" };

export interface JanitorParts {
  database: Database;
  engine: Engine;
  /** Wakes subscribers after a turn was ended. */
  announce: (turnId: string, events: readonly RecordedEvent[]) => void;
  startGranted: (turnId: string) => void;
  log: Logger;
}

/**
 * Looks after what no workflow can: turns that nobody started, and turns whose workflow is gone. It
 * asks Temporal before it touches a turn and does nothing while Temporal is out of reach.
 */
export class Janitor {
  readonly #parts: JanitorParts;
  readonly #settings: JanitorSettings;
  #timer: NodeJS.Timeout | null = null;
  #round: Promise<void> = Promise.resolve();
  #isClosed = false;

  constructor(parts: JanitorParts, settings: Partial<JanitorSettings> = {}) {
    this.#parts = parts;
    this.#settings = { ...defaultJanitorSettings, ...settings };
  }

  /** Makes the first round now and goes on until closed. */
  start(): void {
    if (this.#isClosed) return;
    this.#round = this.#makeRound()
      .catch((error: unknown) => {
        this.#parts.log.warn({ error: String(error) }, "the janitor's round failed");
      })
      .finally(() => {
        if (this.#isClosed) return;
        this.#timer = setTimeout(() => this.start(), this.#settings.roundMs);
        this.#timer.unref();
      });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    await this.#round;
  }

  async #makeRound(): Promise<void> {
    const { database } = this.#parts;
    // A little less than a round, so that the same process may take the next one.
    const holdMs = this.#settings.roundMs * 0.9;
    await takeUpkeepTurn(database, holdMs, async () => {
      await makePartitions(database, partitionDaysAhead);
      await dropOldPartitions(database, this.#settings.eventRetentionDays);
      await this.#lookAfterStale();
      for (const turn of await findExpiredQueuedTurns(database, pageTurns)) {
        await this.#end(turn, expired);
      }
    });
  }

  async #lookAfterStale(): Promise<void> {
    const { database } = this.#parts;
    let after: string | null = null;
    while (!this.#isClosed) {
      const page: Turn[] = await findStaleTurns(
        database,
        this.#settings.patienceMs,
        pageTurns,
        after,
      );
      for (const turn of page) await this.#lookAfter(turn);
      after = page.at(-1)?.id ?? null;
      if (page.length < pageTurns) return;
    }
  }

  async #lookAfter(turn: Turn): Promise<void> {
    const { engine, log } = this.#parts;
    const run = await engine.currentRun(turn.id);
    // However slow it is, a running workflow ends its turn itself.
    if (run?.isRunning) return;
    if (run === null) {
      if (turn.deadlineAt.getTime() < Date.now()) return this.#end(turn, expired);
      log.info({ turn: turn.id }, "starting a turn that Temporal does not know");
      // One that Temporal refuses must not keep the others from being looked after.
      await engine.startTurn(turn).catch((error: unknown) => {
        log.warn({ turn: turn.id, error: String(error) }, "a turn could not be started");
      });
      return;
    }
    log.warn({ turn: turn.id }, "ending a turn whose workflow closed without an ending");
    await this.#end(turn, { status: "failed", failure: failure("workflow_gone") });
  }

  async #end(turn: Turn, ending: Ending): Promise<void> {
    const ended = await endTurn(this.#parts.database, turn, ending, { ifRunId: turn.runId });
    if (ended.outcome !== "ended") return;
    this.#parts.announce(turn.id, ended.events);
    if (ended.granted !== null) this.#parts.startGranted(ended.granted);
  }
}
