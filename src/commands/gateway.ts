import { Turnkeeper } from "../client.ts";
import type { Config } from "../config.ts";
import { createEngine, findSearchAttributes } from "../engine.ts";
import { EventHub } from "../events/hub.ts";
import { startGateway } from "../gateway/gateway.ts";
import { Offers } from "../offers.ts";
import { connectLazily } from "../temporal.ts";
import { configuredWorkflowsUrl, createLog, openDatabase, shutdownSignal } from "./parts.ts";
import { waitFor } from "./waiting.ts";

/** `turnkeeper gateway`: serves HTTP until SIGTERM; open streams end and resume elsewhere. */
export async function runGateway(config: Config): Promise<void> {
  const log = createLog(config);
  const signal = shutdownSignal();
  const database = await openDatabase(config, log, signal);
  const { connection, client } = connectLazily({});
  const searchAttributes = await waitFor(
    () => findSearchAttributes(client),
    (reason) => log.warn({ reason }, "waiting for Temporal"),
    signal,
  );
  const engine = createEngine({
    client,
    taskQueue: config.taskQueue,
    eagerStart: false,
    searchAttributes,
  });
  const hub = await EventHub.open(database);
  const offers = new Offers(database, config.taskQueue);
  const { headStart } = offers;
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
  log.info({ url: gateway.url }, "gateway started");
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve());
  });
  await gateway.close();
  offers.close();
  await hub.close();
  await connection.close();
  await database.close();
  log.info("gateway stopped");
}
