import type { Logger } from "pino";
import { tellOfEnding } from "./activities/finishTurn.ts";
import type { Engine } from "./engine.ts";
import { cancelTurn } from "./store/cancels.ts";
import type { Database } from "./store/database.ts";
import { endTurn } from "./store/endings.ts";
import type { Ending } from "./store/endings.ts";
import { readTurnOfWorkflow } from "./store/turns.ts";
import {
  deleteOldDefaultEvents,
  dropOldPartitions,
  findExpiredQueuedTurns,
  findStaleTurns,
  findTurnsToCancel,
  makePartitions,
  takeUpkeepTurn,
} from "./store/upkeep.ts";
import type { UpkeepTurn } from "./store/upkeep.ts";
import type { RecordedEvent } from "./turn/events.ts";
import { failure } from "./turn/failures.ts";
import { isTerminal } from "./turn/turn.ts";

export interface JanitorSettings {
  /** Time between two rounds of the deployment. */
  roundMs: number;
  /** A turn that was admitted or claimed less than this ago is left to whoever did so. */
  patienceMs: number;
  eventRetentionDays: number;
}

export const defaultJanitorSettings: JanitorSettings = {
  roundMs: 10_000,
  patienceMs: 10_000,
  eventRetentionDays: 30,
};

/**
 * How often within a round a process asks whether it is its turn: where the one that made the last
 * round is gone, the next one comes this much later than usual and not a whole round.
 */
const triesPerRound = 4;

/** A cancel whose turn has not ended after this long is delivered again. */
const undeliveredMs = 5_000;

/** Turns that are read at a time; Temporal is asked for all of a page at once. */
const pageTurns = 20;
const partitionDaysAhead = 3;

const expired: Ending = { status: "incomplete", incompleteReason: "deadline" };

export interface JanitorParts {
  database: Database;
  engine: Engine;
  /** Wakes subscribers after a turn was ended. */
  announce: (turnId: string, events: readonly RecordedEvent[]) => void;
  startGranted: (turnId: string) => void;
  cancelResponse: (turnId: string, responseId: string) => void;
  log: Logger;
}

/**
 * Looks after what no workflow can: turns that nobody started, turns whose workflow is gone, queued
 * ones that are too late, cancels that nobody delivered, and old events. It asks Temporal before it touches a turn that may have a
 * worker, and leaves it alone while Temporal is out of reach.
 */
export class Janitor {
  readonly #parts: JanitorParts;
  readonly #settings: JanitorSettings;
  #timer: NodeJS.Timeout | null = null;
  #round: Promise<void> = Promise.resolve();
  #isClosed = false;
  /** Behind this turn the next round goes on; `null`: from the oldest one. */
  #lookedAfter: string | null = null;

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
        this.#timer = setTimeout(() => this.start(), this.#settings.roundMs / triesPerRound);
        this.#timer.unref();
      });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    await this.#round;
  }

  async #makeRound(): Promise<void> {
    // A little less than a round, so that the same process may take the next one.
    const holdMs = this.#settings.roundMs * 0.9;
    await takeUpkeepTurn(this.#parts.database, holdMs, async () => {
      const leaseEndsAt = performance.now() + holdMs;
      const isOver = () => this.#isClosed || performance.now() > leaseEndsAt;
      // Those that need no Temporal come first; none of them can keep the others from their turn.
      await this.#try(() => this.#endExpired(isOver));
      await this.#try(() => this.#deliverCancels(isOver));
      await this.#try(() => this.#tidyEvents(isOver));
      if (!this.#isClosed) await this.#try(() => this.#lookAfterStale(isOver));
    });
  }

  /** Returns whether it worked: what fails is left to a later round. */
  async #try(work: () => Promise<void>, turnId?: string): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      const of = turnId === undefined ? {} : { turn: turnId };
      this.#parts.log.warn(
        { ...of, error: String(error) },
        "the janitor leaves work to a later round",
      );
      return false;
    }
  }

  async #endExpired(isOver: () => boolean): Promise<void> {
    const find = (after: string | null) =>
      findExpiredQueuedTurns(this.#parts.database, pageTurns, after);
    await this.#forEach(find, (turn) => this.#end(turn, expired), isOver);
  }

  async #deliverCancels(isOver: () => boolean): Promise<void> {
    const find = (after: string | null) =>
      findTurnsToCancel(this.#parts.database, undeliveredMs, pageTurns, after);
    await this.#forEach(find, (turn) => this.#cancel(turn), isOver);
  }

  async #forEach(
    find: (after: string | null) => Promise<UpkeepTurn[]>,
    work: (turn: UpkeepTurn) => Promise<void>,
    isOver: () => boolean,
  ): Promise<void> {
    let after: string | null = null;
    while (!isOver()) {
      const page: UpkeepTurn[] = await find(after);
      await Promise.all(page.map((turn) => this.#try(() => work(turn), turn.id)));
      after = page.at(-1)?.id ?? null;
      if (page.length < pageTurns) return;
    }
  }

  async #tidyEvents(isOver: () => boolean): Promise<void> {
    const { database } = this.#parts;
    const { eventRetentionDays } = this.#settings;
    await makePartitions(database, partitionDaysAhead);
    await dropOldPartitions(database, eventRetentionDays);
    while (!isOver()) {
      const turns = await deleteOldDefaultEvents(database, eventRetentionDays, pageTurns);
      if (turns < pageTurns) return;
    }
  }

  /** Looks after at least one page; where its lease ends this round, the next one goes on. */
  async #lookAfterStale(isOver: () => boolean): Promise<void> {
    const { database } = this.#parts;
    const { patienceMs } = this.#settings;
    do {
      const page = await findStaleTurns(database, patienceMs, pageTurns, this.#lookedAfter);
      this.#lookedAfter = page.length < pageTurns ? null : (page.at(-1)?.id ?? null);
      const looks = page.map((turn) => this.#try(() => this.#lookAfter(turn), turn.id));
      // When no turn of a page can be looked after, Temporal is out of reach.
      if (!(await Promise.all(looks)).includes(true)) return;
    } while (this.#lookedAfter !== null && !isOver());
  }

  async #lookAfter(turn: UpkeepTurn): Promise<void> {
    const { database, engine, log } = this.#parts;
    const run = await engine.currentRun(turn.id);
    // However slow it is, a running workflow ends its turn itself.
    if (run?.isRunning) return;
    if (run !== null) {
      log.warn({ turn: turn.id }, "ending a turn whose workflow closed without an ending");
      return this.#end(turn, { status: "failed", failure: failure("workflow_gone") });
    }
    if (turn.deadlineAt.getTime() < Date.now()) return this.#end(turn, expired);
    const whole = await readTurnOfWorkflow(database, turn.id);
    if (whole === null || isTerminal(whole.status)) return;
    log.info({ turn: turn.id }, "starting a turn that Temporal does not know");
    await engine.startTurn(whole);
  }

  /** Their followers have gone, or whoever asked for the cancel died before anybody heard of it. */
  async #cancel(turn: UpkeepTurn): Promise<void> {
    const { database, engine } = this.#parts;
    const asked = await cancelTurn(database, turn);
    if (asked.outcome === "ended") tellOfEnding(this.#parts, asked);
    else await database.notify("turnkeeper_cancels", turn.id);
    await engine.cancelWorkflow(turn.id);
  }

  async #end(turn: UpkeepTurn, ending: Ending): Promise<void> {
    const ended = await endTurn(this.#parts.database, turn, ending, { ifRunId: turn.runId });
    if (ended.outcome === "ended") tellOfEnding(this.#parts, ended);
  }
}
