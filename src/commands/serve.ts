import { loadApp } from "../app.ts";
import { Turnkeeper } from "../client.ts";
import type { Config } from "../config.ts";
import { EventHub } from "../events/hub.ts";
import { startGateway } from "../gateway/gateway.ts";
import { createWorker, workerSettings } from "../worker.ts";
import {
  configuredWorkflowsUrl,
  createLog,
  openDatabase,
  openEndpoint,
  openTemporal,
  shutdownSignal,
} from "./parts.ts";

/**
 * `turnkeeper serve`: gateway and worker in one process, the shortest way of a turn. Several of them
 * share the work; at SIGTERM the gateway closes first, then the running calls end.
 */
export async function runServe(config: Config): Promise<void> {
  const log = createLog(config);
  const signal = shutdownSignal();
  const app = await loadApp(config);
  const endpoint = openEndpoint(config);
  const database = await openDatabase(config, log, signal);
  const { connection, client } = await openTemporal(log, signal);
  const hub = await EventHub.open(database);
  const settings = workerSettings(config);
  const parts = { connection, client, database, endpoint, hub, log };
  const worker = await createWorker({ ...app, ...settings, ...parts });
  const { engine, headStart } = worker;
  const running = worker.run();
  const gateway = await startGateway({
    database,
    turnkeeper: new Turnkeeper({ database, hub, engine, headStart }, "default"),
    engine,
    host: config.host,
    port: config.port,
    maxBodyBytes: config.maxBodyBytes,
    workflowsUrl: configuredWorkflowsUrl(config, client),
    log,
  });
  log.info({ url: gateway.url, taskQueue: config.taskQueue }, "serve started");
  const stop = () => void gateway.close().finally(() => worker.shutdown());
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  await running;
  await hub.close();
  await endpoint.close();
  await connection.close();
  await database.close();
  log.info("serve stopped");
}
