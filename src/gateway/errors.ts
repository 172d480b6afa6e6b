import { STATUS_CODES } from "node:http";
import type { Duplex } from "node:stream";
import type { FastifyError, FastifyReply, FastifyRequest } from "fastify";
import { StoreUnavailable } from "../store/database.ts";
import { failureRules, Refusal } from "../turn/failures.ts";
import type { Failure, RefusalCode } from "../turn/failures.ts";
import { shownCode } from "../turn/response.ts";

/** OpenAI's error body. */
export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string };
}

/** Tells OpenAI's SDKs not to send the request again, whatever the status. */
const noRetry = { "x-should-retry": "false" };

/** Refusals with a status that SDKs repeat, although repeating does not help. */
const notRepeated: ReadonlySet<RefusalCode> = new Set(["conversation_busy"]);

/** What Fastify refuses before a route sees it, by Fastify's own codes. */
const refusalOfFastify: Record<string, RefusalCode> = {
  FST_ERR_CTP_BODY_TOO_LARGE: "body_too_large",
  FST_ERR_CTP_INVALID_MEDIA_TYPE: "unsupported_media_type",
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: "invalid_json",
  FST_ERR_CTP_INVALID_JSON_BODY: "invalid_json",
};

function validationRefusal(error: FastifyError): Refusal {
  const [first] = error.validation ?? [];
  const extra = first?.params["additionalProperty"];
  if (typeof extra === "string") {
    return new Refusal("unknown_parameter", `There is no parameter '${extra}' here.`, extra);
  }
  const field = first?.instancePath.slice(1).replaceAll("/", ".") ?? "";
  const allowed = first?.params["allowedValues"];
  const values = Array.isArray(allowed) ? `: ${allowed.join(", ")}` : "";
  return new Refusal("invalid_value", `'${field}' ${first?.message}${values}.`, field);
}

function fastifyMessage(error: FastifyError, maxBodyBytes: number): string {
  switch (error.code) {
    case "FST_ERR_CTP_BODY_TOO_LARGE":
      return `The body is larger than the limit of ${maxBodyBytes} bytes (TURNKEEPER_MAX_BODY_BYTES).`;
    case "FST_ERR_CTP_INVALID_MEDIA_TYPE":
      return "Send the body as JSON, with 'content-type: application/json'.";
    default:
      return error.message;
  }
}

/** Translates what can be said to the caller; `null` for what is Turnkeeper's own fault. */
function toRefusal(error: FastifyError, maxBodyBytes: number): Refusal | null {
  if (error instanceof Refusal) return error;
  if (error instanceof StoreUnavailable) {
    return new Refusal("store_unavailable", "The database is out of reach. Try again.", null, {
      cause: error,
    });
  }
  if (error.validation !== undefined) return validationRefusal(error);
  const firstServerStatus = 500;
  if ((error.statusCode ?? firstServerStatus) >= firstServerStatus) return null;
  const code = refusalOfFastify[error.code] ?? "invalid_value";
  return new Refusal(code, fastifyMessage(error, maxBodyBytes));
}

/** Answers every error of every route; only its own faults are logged, with the request's id. */
export function createErrorHandler(maxBodyBytes: number) {
  return async function answerError(
    error: FastifyError,
    request: FastifyRequest,
    reply: FastifyReply,
  ): Promise<FastifyReply> {
    const refusal = toRefusal(error, maxBodyBytes);
    if (refusal === null) {
      request.log.error(
        { err: error, method: request.method, route: request.routeOptions.url },
        "request failed",
      );
      const message = `Turnkeeper itself failed; its log has the cause under ${request.id}.`;
      const internalStatus = 500;
      return reply.code(internalStatus).send(body(message, "server_error", null, "internal"));
    }
    // The rest of a body that is too large is read and dropped, else the sender sees a reset
    // connection instead of this answer.
    if (refusal.code === "body_too_large") reply.removeHeader("connection");
    if (notRepeated.has(refusal.code)) reply.headers(noRetry);
    const { message, type, param, code } = refusal;
    return reply.code(refusal.httpStatus).send(body(message, type, param, code));
  };
}

/** What Node refuses before there is a request, by Node's own codes. */
const refusalOfNode: Record<string, Refusal> = {
  ERR_HTTP_REQUEST_TIMEOUT: new Refusal("request_timeout", "The request did not arrive in time."),
  HPE_HEADER_OVERFLOW: new Refusal("headers_too_large", "The headers are over 16 KiB."),
};
const noHttp = new Refusal("invalid_http", "The request is not valid HTTP/1.1.");

/** Answers, and closes, a connection whose bytes make no request. */
export function answerBrokenRequest(error: NodeJS.ErrnoException, socket: Duplex): void {
  const { httpStatus, type, param, code, message } = refusalOfNode[error.code ?? ""] ?? noHttp;
  if (error.code !== "ECONNRESET" && socket.writable) {
    const text = JSON.stringify(body(message, type, param, code));
    socket.write(
      `HTTP/1.1 ${httpStatus} ${STATUS_CODES[httpStatus]}\r\nconnection: close\r\n` +
        `content-type: application/json; charset=utf-8\r\ncontent-length: ${text.length}\r\n\r\n${text}`,
    );
  }
  socket.destroy(error);
}

/** Answers with a turn's failure, as OpenAI answers a request that failed. Not to be sent again. */
export function answerFailure(reply: FastifyReply, failure: Failure): FastifyReply {
  const { httpStatus, type } = failureRules[failure.class];
  return reply
    .code(httpStatus)
    .headers(noRetry)
    .send(body(failure.message, type, null, shownCode(failure)));
}

export async function answerUnknownRoute(request: FastifyRequest): Promise<never> {
  const path = request.url.split("?", 1)[0] ?? "";
  throw new Refusal("route_not_found", `There is no ${request.method} ${path} here.`);
}

function body(message: string, type: string, param: string | null, code: string): ErrorBody {
  return { error: { message, type, param, code } };
}
