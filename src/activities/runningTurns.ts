import { findTurnsToStop } from "../store/cancels.ts";
import type { Database, Subscription } from "../store/database.ts";
import { repeatEvery } from "../store/repeat.ts";

/** Why a step is stopped from outside. */
export class StepStopped extends Error {
  readonly reason: "cancel_requested" | "fenced" | "deadline" | "handover";

  constructor(reason: StepStopped["reason"]) {
    super(`The step was stopped: ${reason}.`);
    this.name = "StepStopped";
    this.reason = reason;
  }
}

/**
 * The steps that this worker runs, by turn, so that a cancel reaches them at once [12]: by
 * notification, and by rereading the record every second: a notification may be lost, and a turn whose
 * followers have gone, or which somebody else has ended, has none.
 */
export class RunningTurns {
  readonly #steps = new Map<string, Set<AbortController>>();
  readonly #database: Database;
  #subscription: Subscription | null = null;
  #stop: () => void = () => {};

  private constructor(database: Database) {
    this.#database = database;
  }

  static async open(database: Database): Promise<RunningTurns> {
    const rereadMs = 1_000;
    const running = new RunningTurns(database);
    running.#stop = repeatEvery(rereadMs, () => running.#reread());
    running.#subscription = await database.listen("turnkeeper_cancels", (turnId) =>
      turnId === "" ? void running.#reread().catch(() => {}) : running.cancel(turnId),
    );
    return running;
  }

  /** A controller that aborts when the turn is to be cancelled; `release` it when the step ends. */
  register(turnId: string): { controller: AbortController; release: () => void } {
    const controller = new AbortController();
    const steps = this.#steps.get(turnId) ?? new Set();
    steps.add(controller);
    this.#steps.set(turnId, steps);
    return {
      controller,
      release: () => {
        steps.delete(controller);
        if (steps.size === 0) this.#steps.delete(turnId);
      },
    };
  }

  /** Stops the steps of a turn that is to be cancelled, if they run here. */
  cancel(turnId: string): void {
    for (const controller of this.#steps.get(turnId) ?? []) {
      controller.abort(new StepStopped("cancel_requested"));
    }
  }

  async close(): Promise<void> {
    this.#stop();
    await this.#subscription?.close();
  }

  async #reread(): Promise<void> {
    if (this.#steps.size === 0) return;
    const turnIds = await findTurnsToStop(this.#database, [...this.#steps.keys()]);
    for (const turnId of turnIds) this.cancel(turnId);
  }
}
