import type { Database } from "./store/database.ts";
import { repeatEvery } from "./store/repeat.ts";
import { listWorkersWithRoom, offerChannel } from "./store/workers.ts";
import type { HeadStart } from "./clientParts.ts";

const refreshMs = 1_000;

/** While Temporal is away each turn is held here until it can be told of; above this the janitor tells. */
const maxTelling = 250;

/**
 * Head starts for a process that is no worker: each new turn is offered to one of the workers that
 * live, which begins its first step while Temporal is being told. An offer that is lost costs nothing:
 * the workflow's activity comes all the same.
 */
export class Offers {
  readonly #database: Database;
  readonly #taskQueue: string;
  readonly #stop: () => void;
  /** Resolves when the workers are known. */
  readonly ready: Promise<void>;
  #telling = 0;
  #workers: string[] = [];
  #next = 0;

  constructor(database: Database, taskQueue: string) {
    this.#database = database;
    this.#taskQueue = taskQueue;
    this.#stop = repeatEvery(refreshMs, () => this.#refresh());
    this.ready = this.#refresh();
  }

  readonly headStart: HeadStart = (turn, tell) => {
    const worker = this.#workers[this.#next++ % Math.max(1, this.#workers.length)];
    if (worker === undefined || this.#telling >= maxTelling) return false;
    // The offer leaves first: Temporal is in no hurry.
    this.#database.notify(offerChannel(worker), turn.id).catch(() => {});
    this.#telling += 1;
    void tell().finally(() => (this.#telling -= 1));
    return true;
  };

  close(): void {
    this.#stop();
  }

  async #refresh(): Promise<void> {
    try {
      this.#workers = await listWorkersWithRoom(this.#database, this.#taskQueue);
    } catch {
      // While the database is away no turn is admitted either.
    }
  }
}
