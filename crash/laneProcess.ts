import { setTimeout as delay } from "node:timers/promises";
import { startWorkerProcess } from "../test/setup/workerProcess.ts";
import type { WorkerProcess, WorkerProcessOptions } from "../test/setup/workerProcess.ts";
import type { Door } from "./proxies/doors.ts";

const restartAfterMs = 250;
/** Of a machine that has much else to do. */
const readyWithinMs = 240_000;

export interface LaneProcessOptions {
  /** Such as `worker-1`. */
  name: string;
  role: "worker" | "gateway" | "serve";
  doors: { postgres: Door; temporal: Door };
  /** Where a gateway serves HTTP; a worker does not. */
  url: string;
  start: WorkerProcessOptions;
}

/** A worker, a gateway or both in one under a supervisor that starts it again whenever it has ended. */
export class LaneProcess {
  readonly name: string;
  readonly role: LaneProcessOptions["role"];
  readonly url: string;
  readonly doors: { postgres: Door; temporal: Door };
  readonly #start: WorkerProcessOptions;
  #current: WorkerProcess | null = null;
  #started = Promise.withResolvers<WorkerProcess>();
  /** Why it could not be started the last time. */
  #failure: unknown = null;
  #isClosing = false;
  #isToEnd = false;
  /** How it ended without having been told to, since the last look. */
  #crashes: string[] = [];
  readonly #supervised: Promise<void>;

  constructor(options: LaneProcessOptions) {
    this.name = options.name;
    this.role = options.role;
    this.url = options.url;
    this.doors = options.doors;
    this.#start = options.start;
    this.#supervised = this.#supervise();
  }

  /**
   * Resolves when it runs.
   *
   * @throws why it cannot be started, when it does not run within `readyWithinMs`.
   */
  async ready(): Promise<void> {
    const controller = new AbortController();
    const late = delay(readyWithinMs, null, { signal: controller.signal });
    late.catch(() => {});
    const started = await Promise.race([this.#started.promise, late]);
    controller.abort();
    if (started !== null) return;
    throw new Error(`${this.name} does not start: ${String(this.#failure)}`);
  }

  get pid(): number {
    return this.#running().pid;
  }

  signal(signal: NodeJS.Signals): void {
    this.#isToEnd ||= signal === "SIGKILL" || signal === "SIGTERM";
    this.#running().signal(signal);
  }

  /** What it has died of by itself since the last call. */
  takeCrashes(): string[] {
    return this.#crashes.splice(0);
  }

  /** Waits for the end of the process that runs now. Returns its exit code. */
  exited(): Promise<number | null> {
    return this.#running().exited;
  }

  tail(): readonly string[] {
    return this.#current?.tail() ?? [];
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    const current = await this.#started.promise;
    current.signal("SIGCONT");
    current.signal("SIGKILL");
    await this.#supervised;
    await this.doors.postgres.close();
    await this.doors.temporal.close();
  }

  #running(): WorkerProcess {
    if (this.#current === null) throw new Error(`${this.name} does not run.`);
    return this.#current;
  }

  async #supervise(): Promise<void> {
    while (!this.#isClosing) {
      const started = await startWorkerProcess(this.#start).catch((error: unknown) => {
        this.#failure = error;
        return null;
      });
      if (started !== null) {
        this.#current = started;
        this.#started.resolve(started);
        const code = await started.exited;
        const isExpected = this.#isToEnd || this.#isClosing;
        if (!isExpected) this.#crashes.push(`${this.name} ended by itself with ${code}`);
        this.#isToEnd = false;
        this.#started = Promise.withResolvers();
      }
      if (!this.#isClosing) await delay(restartAfterMs);
    }
  }
}
