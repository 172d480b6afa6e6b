import { loadClientConnectConfig } from "@temporalio/envconfig";
import { DefaultLogger, NativeConnection, Runtime } from "@temporalio/worker";
import { Client, Connection } from "@temporalio/client";
import type { Logger } from "pino";

/** Where Temporal is; what is left out comes from Temporal's own environment variables and profile. */
export interface TemporalOptions {
  address?: string | undefined;
  namespace?: string | undefined;
}

const connectTimeoutMs = 5_000;

function connectConfig(options: TemporalOptions) {
  const { connectionOptions, namespace } = loadClientConnectConfig();
  return {
    connectionOptions: {
      ...connectionOptions,
      ...(options.address === undefined ? {} : { address: options.address }),
    },
    namespace: options.namespace ?? namespace ?? "default",
  };
}

let runtimeIsInstalled = false;

/** The SDK's core logs through our log; it is set once per process, before the first connection. */
function installRuntime(log: Logger): void {
  if (runtimeIsInstalled) return;
  runtimeIsInstalled = true;
  Runtime.install({
    logger: new DefaultLogger("WARN", ({ level, message, meta }) => {
      const { error, ...rest } = meta ?? {};
      const reason = error instanceof Error ? error.message : error;
      log[level === "ERROR" ? "error" : "warn"]({ ...rest, error: reason }, message);
    }),
    shutdownSignals: [],
  });
}

interface NativeClient {
  connection: NativeConnection;
  client: Client;
}

/**
 * A client on a worker's kind of connection, so that a process that is both gets the first task of
 * a turn with its start. Connecting fails at once when nobody answers.
 */
export function connectNatively(options: TemporalOptions, log: Logger): Promise<NativeClient> {
  return connectBy(connectConfig(options), log);
}

/**
 * The same to a development server that this process has started: a namespace, TLS or an API key in
 * Temporal's environment variables is meant for another server.
 */
export function connectToOwnServer(address: string, log: Logger): Promise<NativeClient> {
  return connectBy({ connectionOptions: { address }, namespace: "default" }, log);
}

async function connectBy(
  { connectionOptions, namespace }: ReturnType<typeof connectConfig>,
  log: Logger,
): Promise<NativeClient> {
  installRuntime(log);
  const connection = await NativeConnection.connect(connectionOptions);
  return { connection, client: new Client({ connection, namespace }) };
}

/** A client for processes that start turns and run none. Connects on first use. */
export function connectLazily(options: TemporalOptions): {
  connection: Connection;
  client: Client;
} {
  const { connectionOptions, namespace } = connectConfig(options);
  const connection = Connection.lazy({ ...connectionOptions, connectTimeout: connectTimeoutMs });
  return { connection, client: new Client({ connection, namespace }) };
}

/** Where a Temporal UI shows the workflows of a namespace, without the workflow's id. */
export function workflowsUrl(uiUrl: string, namespace: string): string {
  return `${uiUrl.replace(/\/+$/, "")}/namespaces/${namespace}/workflows`;
}
