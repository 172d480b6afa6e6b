import type { IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { fastify, LogController } from "fastify";
import type { FastifyInstance } from "fastify";
import type { Logger } from "pino";
import type { Turnkeeper } from "../client.ts";
import type { Engine } from "../engine.ts";
import type { Database } from "../store/database.ts";
import { newId } from "../turn/ids.ts";
import { Authenticator, checkMayListen } from "./auth.ts";
import { parseJsonBodies } from "./body.ts";
import { closingRefusal } from "./connection.ts";
import type { StreamParts } from "./connection.ts";
import { addConversationItemRoutes } from "./conversationItems.ts";
import { addConversationRoutes } from "./conversations.ts";
import { addCostRoute } from "./costs.ts";
import { answerBrokenRequest, answerUnknownRoute, createErrorHandler } from "./errors.ts";
import { Followers } from "./followers.ts";
import { addHealthRoutes } from "./health.ts";
import { addModelRoutes } from "./models.ts";
import { refuseQueriesByDefault } from "./page.ts";
import { addReplayRoutes } from "./replays.ts";
import { addResponseRoute } from "./responses.ts";
import { addStoredResponseRoutes } from "./storedResponses.ts";
import { addTurnRoutes } from "./turns.ts";

export interface GatewayOptions {
  database: Database;
  turnkeeper: Turnkeeper;
  engine: Engine;
  host: string;
  /** 0: any free port. */
  port: number;
  maxBodyBytes: number;
  /** Where the Temporal UI shows workflows, without the id; see `workflowsUrl`. Default: not known. */
  workflowsUrl?: string | null;
  /** Time between the signs of life on a stream without events. Default 15,000. */
  keepAliveMs?: number;
  log: Logger;
}

export interface Gateway {
  /** `http://HOST:PORT` */
  readonly url: string;
  readonly address: AddressInfo;
  /** Takes no more requests and lets go of those that wait; their callers come back elsewhere. */
  close(): Promise<void>;
}

/** Proxies give up connections that are silent, the shortest usual limit being 30 s. */
const defaultKeepAliveMs = 15_000;
/** A body has to arrive within this time. */
const requestTimeoutMs = 120_000;
/** Connections that are still open this long after the closing began are cut. */
const closeTimeoutMs = 5_000;
/** Above the length of an id, so that one that is too long is refused by name. */
const maxParameterChars = 1_024;

/** A caller's own request id is kept where it is harmless in a log. */
function requestIdOf(request: IncomingMessage): string {
  const given = request.headers["x-request-id"];
  return typeof given === "string" && /^[\w.:-]{1,128}$/.test(given) ? given : newId("request");
}

function createApp(options: GatewayOptions): FastifyInstance {
  return fastify({
    loggerInstance: options.log,
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: requestIdOf,
    bodyLimit: options.maxBodyBytes,
    requestTimeout: requestTimeoutMs,
    exposeHeadRoutes: false,
    return503OnClosing: false,
    routerOptions: { maxParamLength: maxParameterChars },
    ajv: { customOptions: { removeAdditional: false } },
    clientErrorHandler: answerBrokenRequest,
    frameworkErrors: (error, request, reply) => {
      void createErrorHandler(options.maxBodyBytes)(error, request, reply);
    },
  }) as unknown as FastifyInstance;
}

/** The routes that belong to a project; each request is authenticated before its body is read. */
function addApi(app: FastifyInstance, options: GatewayOptions, stream: StreamParts): void {
  const { database, turnkeeper } = options;
  const authenticator = new Authenticator(database, options.host);
  app.decorateRequest("caller");
  app.addHook("onRequest", async (request, reply) => {
    if (stream.closing.aborted) {
      reply.header("connection", "close");
      throw closingRefusal();
    }
    const key = await authenticator.authenticate(request);
    request.caller = { ...key, turns: turnkeeper.project(key.project) };
  });
  refuseQueriesByDefault(app);
  addResponseRoute(app, stream);
  addStoredResponseRoutes(app, { ...stream, database });
  addConversationRoutes(app, database);
  addConversationItemRoutes(app, database);
  addModelRoutes(app, database);
  addCostRoute(app, database);
  addReplayRoutes(app);
  addTurnRoutes(app, database, options.workflowsUrl ?? null);
}

/**
 * Serves the Responses and Conversations APIs over HTTP, durable turns behind them.
 *
 * @throws InvalidConfig when other machines could reach it and no API key was ever made.
 */
export async function startGateway(options: GatewayOptions): Promise<Gateway> {
  await checkMayListen(options.database, options.host);
  const app = createApp(options);
  const closing = new AbortController();
  app.setErrorHandler(createErrorHandler(options.maxBodyBytes));
  app.setNotFoundHandler(answerUnknownRoute);
  app.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
  });
  parseJsonBodies(app);
  addHealthRoutes(app, { ...options, closing: closing.signal });
  const followers = new Followers(options.database, options.log);
  const { keepAliveMs = defaultKeepAliveMs } = options;
  const stream = { closing: closing.signal, keepAliveMs, followers };
  await app.register(async (api) => addApi(api, options, stream));
  const url = await app.listen({ host: options.host, port: options.port });
  return {
    url,
    address: app.server.address() as AddressInfo,
    async close() {
      closing.abort();
      const timer = setTimeout(() => app.server.closeAllConnections(), closeTimeoutMs);
      await app.close();
      clearTimeout(timer);
      await followers.close();
    },
  };
}
