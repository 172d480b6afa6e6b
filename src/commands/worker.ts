import type { Config } from "../config.ts";
import { createWorker, workerSettings } from "../worker.ts";
import { loadApp } from "../app.ts";
import { createLog, openDatabase, openEndpoint, openTemporal, shutdownSignal } from "./parts.ts";

/** `turnkeeper worker`: runs turns until SIGTERM, then lets the running calls end and exits. */
export async function runWorker(config: Config): Promise<void> {
  const log = createLog(config);
  const signal = shutdownSignal();
  const app = await loadApp(config);
  const endpoint = openEndpoint(config);
  const database = await openDatabase(config, log, signal);
  const { connection, client } = await openTemporal(log, signal);
  const worker = await createWorker({
    ...app,
    ...workerSettings(config),
    connection,
    client,
    database,
    endpoint,
    log,
  });
  const stop = (): void => {
    worker.shutdown();
    log.info("worker stopping: it takes no more work");
  };
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  log.info(
    { taskQueue: config.taskQueue, agents: app.agents.map((each) => each.name) },
    "worker started",
  );
  await worker.run();
  await endpoint.close();
  await connection.close();
  await database.close();
  log.info("worker stopped");
}
