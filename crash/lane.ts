import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Client } from "@temporalio/client";
import { anyFreePort } from "../src/dev/ports.ts";
import { startTemporalServer } from "../src/dev/temporalServer.ts";
import type { TemporalServer } from "../src/dev/temporalServer.ts";
import { startSimulator } from "../src/simulator/server.ts";
import type { Simulator } from "../src/simulator/server.ts";
import { openPostgres } from "../src/store/postgres.ts";
import type { Database } from "../src/store/database.ts";
import { connectLazily } from "../src/temporal.ts";
import { migrateByUrl } from "../test/setup/migrateByUrl.ts";
import { startPostgres } from "../test/setup/postgresServer.ts";
import type { PostgresServer } from "../test/setup/postgresServer.ts";
import { startEffects } from "./effects.ts";
import type { Effects } from "./effects.ts";
import { LaneProcess } from "./laneProcess.ts";
import { openPostgresDoor } from "./proxies/postgresProxy.ts";
import { openTemporalDoor } from "./proxies/temporalProxy.ts";
import { Tripwire } from "./tripwire.ts";

/** On which all workers are. */
export const laneTaskQueue = "crash";

const app = fileURLToPath(new URL("app.ts", import.meta.url));

/** Whether workers and gateways are processes of their own, or both are in one, `turnkeeper serve`. */
export type Deployment = "apart" | "together";

export interface LaneOptions {
  temporalBinary: string;
  workflowBundle: string;
  workers: number;
  gateways: number;
  /** `together`: every worker is a gateway too, and there are no others. Default `apart`. */
  deployment?: Deployment;
  /** Variables of the workers and gateways, over those of the lane. */
  environment?: Record<string, string>;
}

/**
 * Temporal's development server waits for the disk at each of its writes, one after the other, which a
 * real one does not. What it has written survives its death all the same; only not the machine's.
 */
const sqlitePragmas = ["journal_mode=wal", "synchronous=off"];

/** Shorter than by default, so that a cell does not wait for what is not its point. */
export const laneEnvironment: Record<string, string> = {
  TURNKEEPER_SHUTDOWN_GRACE_MS: "2000",
  TURNKEEPER_JANITOR_ROUND_MS: "500",
  TURNKEEPER_JANITOR_PATIENCE_MS: "1000",
};

/**
 * A whole deployment of its own: PostgreSQL, Temporal, the model, the world of the tools, workers and
 * gateways. Between the processes and their servers the tripwire sees all that happens.
 */
export class Lane {
  readonly deployment: Deployment;
  readonly tripwire: Tripwire;
  readonly simulator: Simulator;
  readonly effects: Effects;
  readonly postgres: PostgresServer;
  readonly processes: readonly LaneProcess[];
  /** The harness's own way to the servers, past the doors. */
  readonly database: Database;
  readonly temporal: Client;
  readonly #startTemporal: () => Promise<TemporalServer>;
  readonly #clean: () => Promise<void>;
  #temporalServer: TemporalServer;

  private constructor(
    deployment: Deployment,
    parts: Pick<
      Lane,
      "tripwire" | "simulator" | "effects" | "postgres" | "processes" | "database" | "temporal"
    >,
    temporalServer: TemporalServer,
    startTemporal: () => Promise<TemporalServer>,
    clean: () => Promise<void>,
  ) {
    this.deployment = deployment;
    this.tripwire = parts.tripwire;
    this.simulator = parts.simulator;
    this.effects = parts.effects;
    this.postgres = parts.postgres;
    this.processes = parts.processes;
    this.database = parts.database;
    this.temporal = parts.temporal;
    this.#temporalServer = temporalServer;
    this.#startTemporal = startTemporal;
    this.#clean = clean;
  }

  static async open(options: LaneOptions): Promise<Lane> {
    const { deployment = "apart" } = options;
    const folder = await mkdtemp(join(tmpdir(), "turnkeeper-crash-"));
    const port = await anyFreePort();
    const dbFilename = join(folder, "temporal.db");
    const startTemporal = () =>
      startTemporalServer({ binary: options.temporalBinary, dbFilename, port, sqlitePragmas });
    const [postgres, temporalServer] = await Promise.all([startPostgres(), startTemporal()]);
    await migrateByUrl(postgres.url());
    const tripwire = new Tripwire();
    const simulator = await startSimulator({ mode: "scripted", maxKept: 100_000 });
    const effects = await startEffects(tripwire);
    const database = openPostgres({ url: postgres.url() });
    const { connection, client } = connectLazily({ address: temporalServer.address });
    const parts = { tripwire, simulator, effects, postgres, database, temporal: client };
    const named = (role: LaneProcess["role"], count: number): string[] =>
      Array.from({ length: count }, (_, at) => `${role}-${at + 1}`);
    const names =
      deployment === "together"
        ? named("serve", options.workers)
        : [...named("worker", options.workers), ...named("gateway", options.gateways)];
    const open = (name: string) => openProcess(name, parts, temporalServer.address, options);
    const processes = await Promise.all(names.map(open));
    const lane = new Lane(
      deployment,
      { ...parts, processes },
      temporalServer,
      startTemporal,
      async () => {
        await connection.close();
        await database.close();
        await rm(folder, { recursive: true, force: true });
      },
    );
    await lane.ready();
    return lane;
  }

  get workers(): LaneProcess[] {
    return this.processes.filter((each) => each.role !== "gateway");
  }

  get gateways(): LaneProcess[] {
    return this.processes.filter((each) => each.role !== "worker");
  }

  process(name: string): LaneProcess {
    const found = this.processes.find((each) => each.name === name);
    if (found === undefined) throw new Error(`There is no process ${name}.`);
    return found;
  }

  /** Resolves when all processes run. */
  async ready(): Promise<void> {
    await Promise.all(this.processes.map((each) => each.ready()));
  }

  get temporalServer(): TemporalServer {
    return this.#temporalServer;
  }

  /** Starts Temporal again, on the same port and data. */
  async restartTemporal(): Promise<void> {
    this.#temporalServer = await this.#startTemporal();
  }

  async close(): Promise<void> {
    this.tripwire.disarm();
    await Promise.all(this.processes.map((each) => each.close()));
    await this.simulator.close();
    await this.effects.close();
    await this.#clean();
    await this.#temporalServer.kill();
    await this.postgres.remove();
  }
}

async function openProcess(
  name: string,
  parts: Pick<Lane, "tripwire" | "simulator" | "effects" | "postgres">,
  temporalAddress: string,
  options: LaneOptions,
): Promise<LaneProcess> {
  const { tripwire } = parts;
  const target = { host: "127.0.0.1", port: parts.postgres.port };
  const postgres = await openPostgresDoor(target, name, tripwire);
  const temporal = await openTemporalDoor(temporalAddress, name, tripwire);
  const port = await anyFreePort();
  const role = name.split("-")[0] as LaneProcess["role"];
  return new LaneProcess({
    name,
    role,
    url: `http://127.0.0.1:${port}`,
    doors: { postgres, temporal },
    start: {
      role,
      databaseUrl: `postgres://postgres@127.0.0.1:${postgres.port}/postgres`,
      temporalAddress: `127.0.0.1:${temporal.port}`,
      taskQueue: laneTaskQueue,
      openaiBaseUrl: parts.simulator.baseUrl,
      environment: {
        // By its key the model tells who calls.
        OPENAI_API_KEY: name,
        EFFECTS_URL: `${parts.effects.url}/${name}`,
        TURNKEEPER_APP: app,
        TURNKEEPER_PORT: `${port}`,
        TURNKEEPER_WORKFLOW_BUNDLE: options.workflowBundle,
        ...options.environment,
      },
    },
  });
}
