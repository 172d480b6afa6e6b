import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { BusyMode } from "../store/places.ts";
import { failure, Refusal } from "../turn/failures.ts";
import { disconnectGraceMs } from "../turn/limits.ts";
import type { ResponseRequest } from "../turn/request.ts";
import { responseObject } from "../turn/response.ts";
import type { Turn } from "../turn/turn.ts";
import { objectBody } from "./body.ts";
import { closingRefusal, watchConnection } from "./connection.ts";
import type { Connection, StreamParts } from "./connection.ts";
import { answerFailure } from "./errors.ts";
import { sendEvents } from "./sse.ts";

interface Headers {
  "idempotency-key"?: string;
  "x-turnkeeper-when-busy"?: BusyMode;
  "x-turnkeeper-on-disconnect": "continue" | "cancel";
  "x-turnkeeper-disconnect-grace-ms": number;
  "x-stainless-retry-count"?: string;
}

const headersSchema = {
  type: "object",
  properties: {
    "x-turnkeeper-when-busy": { type: "string", enum: ["reject", "queue", "interrupt"] },
    "x-turnkeeper-on-disconnect": {
      type: "string",
      enum: ["continue", "cancel"],
      default: "continue",
    },
    "x-turnkeeper-disconnect-grace-ms": {
      type: "integer",
      minimum: disconnectGraceMs.min,
      maximum: disconnectGraceMs.max,
      default: disconnectGraceMs.default,
    },
  },
};

function streamFlag(body: Record<string, unknown>): boolean {
  const stream = body["stream"] ?? false;
  if (typeof stream === "boolean") return stream;
  throw new Refusal("invalid_value", "'stream' must be true or false.", "stream");
}

/**
 * The turn that a request means: the one it starts, or, where an SDK sends a request again by itself
 * because its connection broke, the one that it had started.
 */
async function findOrStartTurn(
  request: FastifyRequest<{ Headers: Headers }>,
  body: ResponseRequest,
): Promise<Turn> {
  const { turns, apiKeyId } = request.caller;
  const { headers } = request;
  const idempotencyKey = headers["idempotency-key"];
  const isSentAgain = Number(headers["x-stainless-retry-count"] ?? 0) > 0;
  if (isSentAgain && idempotencyKey === undefined) {
    const turn = await turns.reattach(body, apiKeyId);
    if (turn !== null) return turn;
  }
  const { turn } = await turns.admit(body, {
    idempotencyKey,
    apiKeyId: apiKeyId ?? undefined,
    whenBusy: headers["x-turnkeeper-when-busy"],
    disconnectGraceMs:
      headers["x-turnkeeper-on-disconnect"] === "cancel"
        ? headers["x-turnkeeper-disconnect-grace-ms"]
        : undefined,
  });
  return turn;
}

/**
 * Lets go of a request whose answer has not begun. SDKs send such a request again by themselves, so
 * it is noted that this was what its connection was for.
 */
async function letGo(
  request: FastifyRequest,
  reply: FastifyReply,
  turn: Turn,
  connection: Connection,
): Promise<FastifyReply> {
  try {
    await request.caller.turns.markDisconnected(turn.id);
  } catch (error) {
    request.log.warn({ err: error, turn: turn.id }, "a broken connection was not recorded");
  }
  if (connection.isClientGone()) return reply.hijack();
  throw closingRefusal();
}

/** Answers when the turn has ended: with its response, or with its failure as an error. */
async function answerWhenEnded(
  request: FastifyRequest,
  reply: FastifyReply,
  turn: Turn,
  connection: Connection,
): Promise<FastifyReply> {
  let ended: Turn;
  try {
    ended = await request.caller.turns.waitForEnd(turn, connection.signal);
  } catch (error) {
    if (connection.signal.aborted) return letGo(request, reply, turn, connection);
    throw error;
  }
  if (ended.status !== "failed") return reply.send(responseObject(ended));
  return answerFailure(reply, ended.failure ?? failure("internal"));
}

/** Answers in the way in which the caller wants to wait. */
async function answer(
  request: FastifyRequest,
  reply: FastifyReply,
  turn: Turn,
  connection: Connection,
  { isStream, keepAliveMs }: { isStream: boolean; keepAliveMs: number },
): Promise<FastifyReply> {
  if (connection.signal.aborted) return letGo(request, reply, turn, connection);
  reply.header("x-turnkeeper-turn-id", turn.id);
  reply.header("x-turnkeeper-conversation-id", turn.conversationId);
  if (isStream) {
    const events = await request.caller.turns.watch(turn, { signal: connection.signal });
    await sendEvents(reply, events, connection, keepAliveMs);
    return reply;
  }
  if (turn.request.background) return reply.send(responseObject(turn));
  return answerWhenEnded(request, reply, turn, connection);
}

/** `POST /v1/responses`: one request is one turn is one response. */
export function addResponseRoute(app: FastifyInstance, parts: StreamParts): void {
  app.post<{ Headers: Headers }>(
    "/v1/responses",
    { schema: { headers: headersSchema } },
    async (request, reply) => {
      const body = objectBody(request) as ResponseRequest;
      const how = { isStream: streamFlag(body), keepAliveMs: parts.keepAliveMs };
      const connection = watchConnection(reply, parts.closing);
      const turn = await findOrStartTurn(request, body);
      return parts.followers.answer(turn, connection.signal, () =>
        answer(request, reply, turn, connection, how),
      );
    },
  );
}
