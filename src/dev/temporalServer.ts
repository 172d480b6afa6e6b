import { Connection } from "@temporalio/client";
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { searchAttributeNames } from "../turn/engineNames.ts";
import { startServer } from "./childProcess.ts";
import type { Exit, ServerProcess } from "./childProcess.ts";
import { recordServer, stopOrphan } from "./orphan.ts";
import { anyFreePort, loopback } from "./ports.ts";

const readyTimeoutMs = 60_000;
const stopGraceMs = 5_000;
const retryMs = 50;
const keptLogLines = 40;

/** `IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD` of Temporal's API. */
const keywordType = 2;

/**
 * A development server has one history shard, and polls each of that shard's queues 20 times a
 * second at most, which makes every task of a turn wait up to 50 ms (temporalio/server 1.29,
 * common/dynamicconfig/constants.go). Activities may start with the workflow task that asks for
 * them, as they do on Temporal Cloud.
 */
const dynamicConfig: readonly string[] = [
  "history.transferProcessorMaxPollRPS=10000",
  "history.timerProcessorMaxPollRPS=10000",
  "history.visibilityProcessorMaxPollRPS=10000",
  "history.outboundProcessorMaxPollRPS=10000",
  "history.archivalProcessorMaxPollRPS=10000",
  // Timers, and with them the retries of activities, would be up to a second late.
  'history.timerProcessorMaxTimeShift="10ms"',
  "system.enableActivityEagerExecution=true",
];

export interface TemporalServerOptions {
  /** The `temporal` program. */
  binary: string;
  /** Keeps workflows over restarts; in memory if absent. */
  dbFilename?: string;
  /** `NAME=VALUE`, for the database file. */
  sqlitePragmas?: readonly string[];
  /** Of the gRPC front end; any free one if absent. */
  port?: number;
  /** Of the Web UI; no UI if absent. */
  uiPort?: number;
  /** Made at the start, beside `default`. */
  namespace?: string;
  /** Keywords to register; Turnkeeper's own if absent. */
  searchAttributes?: readonly string[];
  /** Called with each line the server prints. */
  log?: (line: string) => void;
}

export interface TemporalServer {
  /** `host:port` of the gRPC front end. */
  address: string;
  uiUrl: string | undefined;
  pid: number;
  /** Settles when the server has ended, for whatever reason. */
  exited: Promise<Exit>;
  stop(): Promise<void>;
  /** As a crash would end it. */
  kill(): Promise<void>;
}

/**
 * Starts Temporal's development server on loopback and waits until it answers for its namespace.
 * A server that a killed process left behind on the same database file is stopped first.
 *
 * @throws with the server's last lines when it ends or is not ready within a minute
 */
export async function startTemporalServer(options: TemporalServerOptions): Promise<TemporalServer> {
  const { dbFilename, log = () => {} } = options;
  if (dbFilename !== undefined) {
    await mkdir(dirname(dbFilename), { recursive: true });
    await stopOrphan(dbFilename, log);
  }
  for (let start = 1; ; start++) {
    try {
      return await startOnce(options);
    } catch (error) {
      const isLost = error instanceof Error && portTaken.test(error.message);
      if (!isLost || start === maxStarts) throw error;
    }
  }
}

/**
 * The server has ports that it chooses itself, and another process can take one between its choice and
 * its use.
 */
const portTaken = /address already in use/;
const maxStarts = 3;

async function startOnce(options: TemporalServerOptions): Promise<TemporalServer> {
  const { dbFilename, uiPort, log = () => {} } = options;
  const port = options.port ?? (await anyFreePort());
  const lastLines: string[] = [];
  const onLine = (line: string): void => {
    lastLines.push(line);
    if (lastLines.length > keptLogLines) lastLines.shift();
    log(line);
  };
  const args = commandArguments({ ...options, port });
  const server = await startServer(options.binary, args, { deathSignal: "KILL" }, onLine);
  if (dbFilename !== undefined) await recordServer(dbFilename, server.pid);
  const address = `${loopback}:${port}`;
  try {
    await untilReady(address, options, server);
  } catch (cause) {
    await server.stop("SIGKILL", 0);
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`Temporal did not start: ${reason}\n${lastLines.join("\n")}`, { cause });
  }
  return {
    address,
    uiUrl: uiPort === undefined ? undefined : `http://${loopback}:${uiPort}`,
    pid: server.pid,
    exited: server.exited,
    stop: async () => void (await server.stop("SIGTERM", stopGraceMs)),
    kill: async () => void (await server.stop("SIGKILL", 0)),
  };
}

function commandArguments(options: TemporalServerOptions & { port: number }): string[] {
  const { port, uiPort, dbFilename, namespace, sqlitePragmas = [] } = options;
  const { searchAttributes = searchAttributeNames } = options;
  const listen = ["--ip", loopback, "--port", String(port)];
  return [
    "server",
    "start-dev",
    ...listen,
    ...(uiPort === undefined ? ["--headless"] : ["--ui-port", String(uiPort)]),
    ...(dbFilename === undefined ? [] : ["--db-filename", dbFilename]),
    ...sqlitePragmas.flatMap((pragma) => ["--sqlite-pragma", pragma]),
    ...(namespace === undefined ? [] : ["--namespace", namespace]),
    ...dynamicConfig.flatMap((setting) => ["--dynamic-config-value", setting]),
    ...searchAttributes.flatMap((name) => ["--search-attribute", `${name}=Keyword`]),
  ];
}

async function untilReady(
  address: string,
  options: TemporalServerOptions,
  server: ServerProcess,
): Promise<void> {
  const controller = new AbortController();
  const { signal } = controller;
  const ended = server.exited.then(({ code, signal: by }) => {
    throw new Error(`it ended (${by ?? `exit code ${code}`})`);
  });
  const late = sleep(readyTimeoutMs, undefined, { signal }).then(() => {
    throw new Error(`not ready within ${readyTimeoutMs / 1000} s`);
  });
  try {
    await Promise.race([answers(address, options, signal), ended, late]);
  } finally {
    controller.abort();
    late.catch(() => {}); // the abort ends it
    ended.catch(() => {}); // it will end one day
  }
}

/** Asks until the server knows the namespace with its search attributes. */
async function answers(
  address: string,
  options: TemporalServerOptions,
  signal: AbortSignal,
): Promise<void> {
  const { namespace = "default", searchAttributes = searchAttributeNames } = options;
  const connection = Connection.lazy({ address });
  const ready = (): Promise<boolean> =>
    hasSearchAttributes(connection, namespace, searchAttributes).catch(() => false);
  try {
    while (!signal.aborted && !(await ready())) await sleep(retryMs);
  } finally {
    await connection.close();
  }
}

/** The server's own `--search-attribute` does nothing for a namespace that is on file already. */
async function hasSearchAttributes(
  { operatorService }: Connection,
  namespace: string,
  wanted: readonly string[],
): Promise<boolean> {
  const { customAttributes } = await operatorService.listSearchAttributes({ namespace });
  const missing = wanted.filter((name) => !(name in customAttributes));
  if (missing.length === 0) return true;
  const searchAttributes = Object.fromEntries(missing.map((name) => [name, keywordType]));
  await operatorService.addSearchAttributes({ namespace, searchAttributes });
  return false;
}
