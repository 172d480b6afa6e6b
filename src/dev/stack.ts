import { join } from "node:path";
import type { Logger } from "pino";
import { configuredTemporal, findTemporal } from "../../setup/temporal.mjs";
import { Turnkeeper } from "../client.ts";
import { loadApp } from "../app.ts";
import { waitFor } from "../commands/waiting.ts";
import type { Config } from "../config.ts";
import { EventHub } from "../events/hub.ts";
import { startGateway } from "../gateway/gateway.ts";
import { openModelEndpoint } from "../responses/call.ts";
import type { ModelEndpoint } from "../responses/call.ts";
import { startSimulator } from "../simulator/server.ts";
import type { Database } from "../store/database.ts";
import { migrate } from "../store/migrate.ts";
import { openPglite } from "../store/pglite.ts";
import { openPostgres } from "../store/postgres.ts";
import { connectNatively, connectToOwnServer, workflowsUrl } from "../temporal.ts";
import { createWorker, workerSettings } from "../worker.ts";
import { exampleApp } from "./exampleApp.ts";
import { lockDataFolder } from "./lockFile.ts";
import { claimPort, stepToFreePort } from "./ports.ts";
import { devTaskQueue } from "./taskQueue.ts";
import { startTemporalServer } from "./temporalServer.ts";

/** Everything of Turnkeeper in this process, and Temporal beside it. */
export interface DevStack {
  gatewayUrl: string;
  /** `null` when Temporal was there already and the configuration does not name its UI. */
  temporalUiUrl: string | null;
  /** Where that UI shows workflows, without the id. */
  workflowsUrl: string | null;
  taskQueue: string;
  /** `host:port`; `null` when Temporal was there already: its own settings name it. */
  temporalAddress: string | null;
  isSimulated: boolean;
  /** Rejects when a part that must stay up has stopped. */
  broken: Promise<never>;
  close(): Promise<void>;
}

const preferredTemporalPort = 7233;
const preferredUiPort = 8233;

/** Parts that were started, closed in the opposite order. */
class Started {
  readonly #closers: (() => Promise<unknown>)[] = [];

  add<Part>(part: Part, close: (part: Part) => Promise<unknown>): Part {
    this.#closers.push(() => close(part));
    return part;
  }

  async close(): Promise<void> {
    for (const close of this.#closers.splice(0).toReversed()) await close();
  }
}

/** What the start of each part is given. */
interface Starting {
  config: Config;
  log: Logger;
  say(step: string): void;
  signal: AbortSignal;
  started: Started;
}

async function openDevDatabase(starting: Starting): Promise<Database> {
  const { config, say, signal, started } = starting;
  const { databaseUrl: url, maxDatabaseConnections: maxConnections } = config;
  if (url === null) {
    say("opening the embedded database");
    const embedded = await openPglite(join(config.folder, "pglite"));
    started.add(embedded, (each) => each.close());
    await migrate(embedded);
    return embedded;
  }
  say("connecting to PostgreSQL");
  const database = started.add(openPostgres({ url, maxConnections }), (each) => each.close());
  await waitFor(
    () => migrate(database),
    (reason) => say(`waiting for the database of DATABASE_URL: ${reason}`),
    signal,
  );
  return database;
}

async function startTemporal({ config, log, started }: Starting) {
  if (configuredTemporal() !== undefined) return undefined;
  const binary = await findTemporal();
  if (binary === undefined) {
    throw new Error("There is no Temporal server. Run 'npm start' once: it installs one.");
  }
  const server = await startTemporalServer({
    binary,
    dbFilename: join(config.folder, "temporal.db"),
    port: await stepToFreePort(preferredTemporalPort),
    uiPort: await stepToFreePort(preferredUiPort),
    log: (line) => log.debug({ line }, "temporal"),
  });
  return started.add(server, (each) => each.stop());
}

async function connectToTemporal(ownAddress: string | undefined, starting: Starting) {
  const { log, say, signal, started } = starting;
  const waiting = (reason: string) => say(`waiting for Temporal: ${reason}`);
  const connected =
    ownAddress === undefined
      ? await waitFor(() => connectNatively({}, log), waiting, signal)
      : await connectToOwnServer(ownAddress, log);
  started.add(connected.connection, (each) => each.close());
  return connected;
}

async function openDevEndpoint({ config, started }: Starting): Promise<ModelEndpoint> {
  const timeouts = {
    connectTimeoutMs: config.connectTimeoutMs,
    headersTimeoutMs: config.headersTimeoutMs,
  };
  if (config.openaiApiKey !== null) {
    const { openaiBaseUrl: baseUrl, openaiApiKey: apiKey } = config;
    return openModelEndpoint({ baseUrl, apiKey, ...timeouts });
  }
  const simulator = started.add(await startSimulator({ mode: "friendly" }), (each) => each.close());
  return openModelEndpoint({ baseUrl: simulator.baseUrl, apiKey: "simulated", ...timeouts });
}

/**
 * Starts the whole of Turnkeeper for development, in `config.folder`.
 *
 * @param say told of each step as it begins, and of what is waited for.
 * @throws PortTakenError or DataFolderInUseError, which say what to do; the signal's reason when it
 *   aborts while a database or a Temporal server that was configured is not there yet.
 */
export async function startDevStack(
  config: Config,
  log: Logger,
  say: (step: string) => void,
  signal: AbortSignal,
): Promise<DevStack> {
  const started = new Started();
  try {
    return await startParts({ config, log, say, signal, started });
  } catch (error) {
    await started.close();
    throw error;
  }
}

async function startParts(starting: Starting): Promise<DevStack> {
  const { config, log, say, started } = starting;
  started.add(await lockDataFolder(config.folder), (each) => each.release());
  const port = config.isPortGiven
    ? await claimPort(config.port, "TURNKEEPER_PORT or --port")
    : await stepToFreePort(config.port);
  const database = await openDevDatabase(starting);
  say("starting Temporal");
  const temporal = await startTemporal(starting);
  const { connection, client } = await connectToTemporal(temporal?.address, starting);
  say("starting the worker");
  const endpoint = started.add(await openDevEndpoint(starting), (each) => each.close());
  const hub = started.add(await EventHub.open(database), (each) => each.close());
  const app = config.app === null ? exampleApp(config) : await loadApp(config);
  const taskQueue = await devTaskQueue(config);
  const parts = { connection, client, database, endpoint, hub, log };
  const worker = await createWorker({ ...app, ...workerSettings(config), taskQueue, ...parts });
  const running = worker.run();
  running.catch(() => {});
  started.add(worker, async (each) => {
    each.shutdown();
    await running;
  });
  const uiUrl = temporal?.uiUrl ?? config.temporalUiUrl;
  const shownAt = uiUrl === null ? null : workflowsUrl(uiUrl, client.options.namespace);
  const gateway = await startGateway({
    database,
    turnkeeper: new Turnkeeper(
      { database, hub, engine: worker.engine, headStart: worker.headStart },
      "default",
    ),
    engine: worker.engine,
    host: config.host,
    port,
    maxBodyBytes: config.maxBodyBytes,
    workflowsUrl: shownAt,
    log,
  });
  started.add(gateway, (each) => each.close());
  const broken = whenBroken(running, temporal?.exited);
  // Closing the stack ends both as well; only who still waits wants to hear of it.
  broken.catch(() => {});
  return {
    gatewayUrl: gateway.url,
    temporalUiUrl: uiUrl,
    workflowsUrl: shownAt,
    taskQueue,
    temporalAddress: temporal?.address ?? null,
    isSimulated: config.openaiApiKey === null,
    broken,
    close: () => started.close(),
  };
}

async function whenBroken(
  running: Promise<void>,
  temporalExited: Promise<unknown> | undefined,
): Promise<never> {
  await Promise.race([running, ...(temporalExited === undefined ? [] : [temporalExited])]);
  throw new Error("The worker or Temporal has stopped.");
}
