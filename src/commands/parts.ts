import type { Client } from "@temporalio/client";
import { pino } from "pino";
import type { Logger } from "pino";
import { InvalidConfig } from "../config.ts";
import type { Config } from "../config.ts";
import { openModelEndpoint } from "../responses/call.ts";
import type { ModelEndpoint } from "../responses/call.ts";
import type { Database } from "../store/database.ts";
import { migrate } from "../store/migrate.ts";
import { openPostgres } from "../store/postgres.ts";
import { connectNatively, workflowsUrl } from "../temporal.ts";
import { Stopped, waitFor } from "./waiting.ts";

/** A log of JSON lines on stderr; bodies and secrets are never given to it [15]. */
export function createLog(config: Config): Logger {
  return pino({ level: config.logLevel, base: null }, pino.destination(2));
}

/**
 * A Ctrl-C may come twice: a terminal sends it to the whole process group, and npm, which is in it, hands
 * its own on.
 */
const repeatedSignalMs = 1_000;

/**
 * Aborts at the first SIGINT or SIGTERM, by {@link Stopped}; one that comes more than a second later ends
 * the process at once.
 */
export function shutdownSignal(): AbortSignal {
  const controller = new AbortController();
  let firstAt = 0;
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => {
      const exitCodeOfInterrupt = 130;
      if (controller.signal.aborted) {
        if (performance.now() - firstAt > repeatedSignalMs) process.exit(exitCodeOfInterrupt);
        return;
      }
      firstAt = performance.now();
      controller.abort(new Stopped(`Stopped by ${signal}.`));
    });
  }
  return controller.signal;
}

/** The PostgreSQL that `DATABASE_URL` names, with its schema up to date. */
export async function openDatabase(
  config: Config,
  log: Logger,
  signal: AbortSignal,
): Promise<Database> {
  if (config.databaseUrl === null) {
    throw new InvalidConfig([
      "DATABASE_URL: names the PostgreSQL that workers and gateways share, such as postgres://user@host/turnkeeper. Only 'turnkeeper dev' runs without it.",
    ]);
  }
  const database = openPostgres({
    url: config.databaseUrl,
    maxConnections: config.maxDatabaseConnections,
  });
  await waitFor(
    () => migrate(database),
    (reason) => log.warn({ reason }, "waiting for the database of DATABASE_URL"),
    signal,
  );
  return database;
}

/** A connection to Temporal for a process that runs turns. */
export function openTemporal(log: Logger, signal: AbortSignal): ReturnType<typeof connectNatively> {
  return waitFor(
    () => connectNatively({}, log),
    (reason) => log.warn({ reason }, "waiting for Temporal"),
    signal,
  );
}

/** The provider's endpoint. */
export function openEndpoint(config: Config): ModelEndpoint {
  if (config.openaiApiKey === null) {
    throw new InvalidConfig([
      "OPENAI_API_KEY: the key of the model provider; or OPENAI_BASE_URL for a server that needs none.",
    ]);
  }
  return openModelEndpoint({
    baseUrl: config.openaiBaseUrl,
    apiKey: config.openaiApiKey,
    connectTimeoutMs: config.connectTimeoutMs,
    headersTimeoutMs: config.headersTimeoutMs,
  });
}

/** Where workflows can be looked at; `null` where the configuration does not say. */
export function configuredWorkflowsUrl(config: Config, client: Client): string | null {
  if (config.temporalUiUrl === null) return null;
  return workflowsUrl(config.temporalUiUrl, client.options.namespace);
}
