import type { Client } from "@temporalio/client";
import { inject } from "vitest";
import { Turnkeeper } from "../../src/client.ts";
import { startSimulator } from "../../src/simulator/server.ts";
import type { Simulator } from "../../src/simulator/server.ts";
import { openPostgres } from "../../src/store/postgres.ts";
import type { Database } from "../../src/store/database.ts";
import { connectLazily } from "../../src/temporal.ts";
import { createTestDatabase } from "./database.ts";
import { sharedTemporal, uniqueTaskQueue } from "./servers.ts";
import { startWorkerProcess } from "./workerProcess.ts";
import type { WorkerProcess, WorkerProcessOptions } from "./workerProcess.ts";

/** A client in this process; workers come and go in processes of their own. */
export interface Crashable {
  database: Database;
  simulator: Simulator;
  turnkeeper: Turnkeeper;
  temporal: Client;
  workerOptions: WorkerProcessOptions;
  startWorker(options?: Partial<WorkerProcessOptions>): Promise<WorkerProcess>;
  close(): Promise<void>;
}

/**
 * @param own servers that the test may stop; the shared ones by default.
 */
export async function startCrashable(
  own: { databaseUrl?: string; temporalAddress?: string } = {},
): Promise<Crashable> {
  const url = own.databaseUrl ?? (await createTestDatabase()).url;
  const temporalAddress = own.temporalAddress ?? sharedTemporal().address;
  const taskQueue = uniqueTaskQueue();
  const simulator = await startSimulator({ mode: "scripted" });
  const turnkeeper = await Turnkeeper.connect({
    databaseUrl: url,
    temporalAddress,
    taskQueue,
  });
  const database = openPostgres({ url });
  const { connection, client } = connectLazily({ address: temporalAddress });
  const workers = new Set<WorkerProcess>();
  const environment = { TURNKEEPER_WORKFLOW_BUNDLE: inject("workflowBundle") };
  const workerOptions: WorkerProcessOptions = {
    databaseUrl: url,
    temporalAddress,
    taskQueue,
    openaiBaseUrl: simulator.baseUrl,
    environment,
  };
  return {
    database,
    simulator,
    turnkeeper,
    temporal: client,
    workerOptions,
    async startWorker(options = {}) {
      const worker = await startWorkerProcess({
        ...workerOptions,
        ...options,
        environment: { ...environment, ...options.environment },
      });
      workers.add(worker);
      return worker;
    },
    async close() {
      for (const worker of workers) await worker.kill();
      await turnkeeper.close();
      await connection.close();
      await database.close();
      await simulator.close();
    },
  };
}
