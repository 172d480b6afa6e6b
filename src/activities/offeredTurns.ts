import type { Database, Subscription } from "../store/database.ts";
import { repeatEvery } from "../store/repeat.ts";
import { readTurnOfWorkflow } from "../store/turns.ts";
import { markWorker, offerChannel, removeWorker } from "../store/workers.ts";
import type { HeadStarts } from "./headStarts.ts";
import type { Parts } from "./parts.ts";

const markEveryMs = 1_000;

/** Takes the turns that gateways offer to this worker, and says that it lives. */
export class OfferedTurns {
  readonly #id = crypto.randomUUID().replaceAll("-", "");
  readonly #parts: Pick<Parts, "database" | "log">;
  readonly #headStarts: HeadStarts;
  readonly #taskQueue: string;
  #listening: Promise<Subscription> | null = null;
  #stop: (() => void) | null = null;

  constructor(parts: Pick<Parts, "database" | "log">, headStarts: HeadStarts, taskQueue: string) {
    this.#parts = parts;
    this.#headStarts = headStarts;
    this.#taskQueue = taskQueue;
  }

  start(): void {
    this.#stop = repeatEvery(markEveryMs, () => this.#mark());
    this.#mark().catch(() => {});
  }

  async close(): Promise<void> {
    this.#stop?.();
    this.#stop = null;
    await this.#listening?.then((listening) => listening.close()).catch(() => {});
    // A row that stays is not offered anything for longer than it takes to look dead.
    await removeWorker(this.#parts.database, this.#id).catch(() => {});
  }

  async #mark(): Promise<void> {
    const { database } = this.#parts;
    this.#listening ??= database.listen(offerChannel(this.#id), (turnId) => {
      if (turnId !== "") void this.#take(database, turnId);
    });
    try {
      await this.#listening;
    } catch {
      this.#listening = null;
      return;
    }
    if (this.#stop === null) return;
    const { hasRoom } = this.#headStarts;
    await markWorker(database, { id: this.#id, taskQueue: this.#taskQueue, hasRoom });
  }

  async #take(database: Database, turnId: string): Promise<void> {
    try {
      const turn = await readTurnOfWorkflow(database, turnId);
      // Whoever offers it tells Temporal of it.
      if (turn?.status === "admitted") this.#headStarts.begin(turn, async () => {});
    } catch (error) {
      this.#parts.log.info(
        { turn: turnId, reason: String(error) },
        "an offered turn was not taken",
      );
    }
  }
}
