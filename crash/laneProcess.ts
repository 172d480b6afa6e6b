import { setTimeout as delay } from "node:timers/promises";
import { startWorkerProcess } from "../test/setup/workerProcess.ts";
import type { WorkerProcess, WorkerProcessOptions } from "../test/setup/workerProcess.ts";
import type { Door } from "./proxies/doors.ts";

const restartAfterMs = 250;

export interface LaneProcessOptions {
  /** Such as `worker-1`. */
  name: string;
  role: "worker" | "gateway";
  doors: { postgres: Door; temporal: Door };
  /** Where a gateway serves HTTP. */
  url: string;
  start: WorkerProcessOptions;
}

/** A worker or a gateway under a supervisor that starts it again whenever it has ended. */
export class LaneProcess {
  readonly name: string;
  readonly role: "worker" | "gateway";
  readonly url: string;
  readonly doors: { postgres: Door; temporal: Door };
  readonly #start: WorkerProcessOptions;
  #current: WorkerProcess | null = null;
  #started = Promise.withResolvers<WorkerProcess>();
  #isClosing = false;
  readonly #supervised: Promise<void>;

  constructor(options: LaneProcessOptions) {
    this.name = options.name;
    this.role = options.role;
    this.url = options.url;
    this.doors = options.doors;
    this.#start = options.start;
    this.#supervised = this.#supervise();
  }

  /** Resolves when it runs. */
  async ready(): Promise<void> {
    await this.#started.promise;
  }

  get pid(): number {
    return this.#running().pid;
  }

  signal(signal: NodeJS.Signals): void {
    this.#running().signal(signal);
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
      const started = await startWorkerProcess(this.#start).catch(() => null);
      if (started !== null) {
        this.#current = started;
        this.#started.resolve(started);
        await started.exited;
        this.#started = Promise.withResolvers();
      }
      if (!this.#isClosing) await delay(restartAfterMs);
    }
  }
}
