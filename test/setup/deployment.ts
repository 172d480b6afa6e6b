import type { Client } from "@temporalio/client";
import { pino } from "pino";
import { inject } from "vitest";
import { Turnkeeper } from "../../src/client.ts";
import type { WorkerVersion } from "../../src/config.ts";
import { EventHub } from "../../src/events/hub.ts";
import type { JanitorSettings } from "../../src/janitor.ts";
import { openModelEndpoint } from "../../src/responses/call.ts";
import type { ModelEndpoint } from "../../src/responses/call.ts";
import { startSimulator } from "../../src/simulator/server.ts";
import type { Simulator } from "../../src/simulator/server.ts";
import type { Database } from "../../src/store/database.ts";
import { openPostgres } from "../../src/store/postgres.ts";
import { connectNatively } from "../../src/temporal.ts";
import type { Tool } from "../../src/tools/defineTool.ts";
import { defineAgent } from "../../src/turn/agent.ts";
import type { Agent } from "../../src/turn/agent.ts";
import { createWorker } from "../../src/worker.ts";
import { createTestDatabase } from "./database.ts";
import { sharedTemporal, uniqueTaskQueue } from "./servers.ts";

/** A whole Turnkeeper in this process: real database, real Temporal, real wire to the simulator. */
export interface Deployment {
  database: Database;
  databaseUrl: string;
  simulator: Simulator;
  turnkeeper: Turnkeeper;
  hub: EventHub;
  /** The way of the worker to the simulator. */
  endpoint: ModelEndpoint;
  taskQueue: string;
  temporal: Client;
  /** For `afterEach`: the script was kept to, and the next test begins with an empty one. */
  endScript(): void;
  close(): Promise<void>;
}

export interface DeploymentOptions {
  agents?: Agent[];
  tools?: Tool[];
  janitor?: Partial<JanitorSettings>;
  /** A migrated database of the test's own. */
  databaseUrl?: string;
  /** Turns begin before Temporal knows of them, as in `turnkeeper dev`. */
  headStart?: boolean;
  /** Another deployment's, to be a second worker of it. */
  taskQueue?: string;
  /** The way to the Temporal server; directly by default. */
  temporalAddress?: string;
  maxConcurrentSteps?: number;
  /** The worker's version. */
  version?: WorkerVersion;
  /** A model server other than the simulator. */
  openaiBaseUrl?: string;
}

export async function deploy(options: DeploymentOptions = {}): Promise<Deployment> {
  const opened = new AsyncDisposableStack();
  try {
    return await start(options, opened);
  } catch (error) {
    await opened.disposeAsync();
    throw error;
  }
}

/** @param opened gets whatever has to be closed. */
async function start(
  options: DeploymentOptions,
  opened: AsyncDisposableStack,
): Promise<Deployment> {
  const url = options.databaseUrl ?? (await createTestDatabase()).url;
  const taskQueue = options.taskQueue ?? uniqueTaskQueue();
  const simulator = await startSimulator({ mode: "scripted" });
  opened.defer(() => simulator.close());
  const database = openPostgres({ url });
  opened.defer(() => database.close());
  const hub = await EventHub.open(database);
  opened.defer(() => hub.close());
  const log = pino({ level: process.env["TURNKEEPER_LOG_LEVEL"] ?? "silent" });
  const address = options.temporalAddress ?? sharedTemporal().address;
  const { connection, client } = await connectNatively({ address }, log);
  opened.defer(() => connection.close());
  const endpoint = openModelEndpoint({
    baseUrl: options.openaiBaseUrl ?? simulator.baseUrl,
    apiKey: "sk-simulated",
    connectTimeoutMs: 5_000,
    headersTimeoutMs: 20_000,
  });
  opened.defer(() => endpoint.close());
  const worker = await createWorker({
    connection,
    client,
    taskQueue,
    database,
    endpoint,
    hub,
    agents: options.agents ?? [defineAgent({ name: "default", model: "gpt-test" })],
    tools: options.tools ?? [],
    deployment: options.version ?? null,
    workflowBundle: inject("workflowBundle"),
    log,
    maxConcurrentSteps: options.maxConcurrentSteps ?? 100,
    shutdownGraceMs: 1_000,
    ...(options.janitor === undefined ? {} : { janitor: options.janitor }),
  });
  const running = worker.run();
  const { engine, headStart } = worker;
  const turnkeeper = new Turnkeeper(
    { database, hub, engine, ...(options.headStart ? { headStart } : {}) },
    "default",
  );
  return {
    database,
    databaseUrl: url,
    simulator,
    turnkeeper,
    hub,
    endpoint,
    taskQueue,
    temporal: client,
    endScript() {
      try {
        simulator.assertConsumed();
      } finally {
        simulator.reset();
      }
    },
    async close() {
      worker.shutdown();
      await running;
      await opened.disposeAsync();
    },
  };
}
