import OpenAI from "openai";
import type { ClientOptions } from "openai";
import { pino } from "pino";
import { createEngine } from "../../src/engine.ts";
import type { Engine } from "../../src/engine.ts";
import { startGateway } from "../../src/gateway/gateway.ts";
import type { Gateway, GatewayOptions } from "../../src/gateway/gateway.ts";
import { connectLazily } from "../../src/temporal.ts";
import { deploy } from "./deployment.ts";
import type { Deployment, DeploymentOptions } from "./deployment.ts";
import { sharedTemporal } from "./servers.ts";

/** A whole Turnkeeper with a gateway before it, and unchanged OpenAI clients. */
export interface Served extends Deployment {
  gateway: Gateway;
  engine: Engine;
  /** A client of this gateway; `maxRetries` is 0 unless given. */
  client: OpenAI;
  openClient(options?: ClientOptions): OpenAI;
  /** Another gateway on the same database. */
  startGateway(options?: Partial<GatewayOptions>): Promise<Gateway>;
  /** A plain request to the gateway, JSON in and out. */
  ask(
    method: string,
    path: string,
    body?: unknown,
    headers?: Record<string, string>,
  ): Promise<Asked>;
}

export interface Asked {
  status: number;
  headers: Headers;
  // Answers are checked field by field; their types are the openai package's business.
  // oxlint-disable-next-line typescript/no-explicit-any
  body: any;
}

const mebibyte = 1024 * 1024;

export async function serve(options: DeploymentOptions = {}): Promise<Served> {
  const deployment = await deploy(options);
  const { connection, client: temporal } = connectLazily({ address: sharedTemporal().address });
  const engine = createEngine({
    client: temporal,
    taskQueue: deployment.taskQueue,
    eagerStart: false,
    searchAttributes: new Set(),
  });
  const log = pino({ level: process.env["TURNKEEPER_LOG_LEVEL"] ?? "silent" });
  const gateways: Gateway[] = [];
  const open = async (more: Partial<GatewayOptions> = {}): Promise<Gateway> => {
    const opened = await startGateway({
      database: deployment.database,
      turnkeeper: deployment.turnkeeper,
      engine,
      host: "127.0.0.1",
      port: 0,
      maxBodyBytes: 16 * mebibyte,
      log,
      ...more,
    });
    gateways.push(opened);
    return opened;
  };
  const gateway = await open();
  const openClient = (more: ClientOptions = {}): OpenAI =>
    new OpenAI({ baseURL: `${gateway.url}/v1`, apiKey: "none", maxRetries: 0, ...more });
  return {
    ...deployment,
    gateway,
    engine,
    client: openClient(),
    openClient,
    startGateway: open,
    ask: (method, path, body, headers) => ask(`${gateway.url}${path}`, method, body, headers),
    async close() {
      for (const each of gateways) await each.close();
      await connection.close();
      await deployment.close();
    },
  };
}

/** Sends JSON, or a string as it is, and reads the answer. */
export async function ask(
  url: string,
  method: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Asked> {
  const json = { "content-type": "application/json", ...headers };
  const response = await fetch(url, {
    method,
    ...(body === undefined
      ? { headers }
      : { headers: json, body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: text && JSON.parse(text) };
}
