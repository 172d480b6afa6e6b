// Steps that go wrong, each as a provider or a network does it.
import type { ResponseError } from "openai/resources/responses/responses";
import { text } from "./script.ts";
import type { AnswerStep, Disturbance, HttpStep, IncompleteReason, SocketStep } from "./script.ts";

/** The body of every error of the OpenAI API. */
export interface ApiErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

export function apiError(
  message: string,
  type = "invalid_request_error",
  code: string | null = null,
  param: string | null = null,
): ApiErrorBody {
  return { error: { message, type, param, code } };
}

/** When to come back, in each form that servers use. */
export interface RetryAfter {
  seconds?: number;
  /** Sent as an HTTP date. */
  date?: Date;
  /** `retry-after-ms` */
  ms?: number;
  /** `x-ratelimit-reset-requests`, such as `1s` or `6m0s`. */
  resetRequests?: string;
  /** `x-ratelimit-reset-tokens` */
  resetTokens?: string;
}

function retryHeaders(after: RetryAfter): Record<string, string> {
  const headers: Record<string, string> = {};
  if (after.seconds !== undefined) headers["retry-after"] = String(after.seconds);
  if (after.date !== undefined) headers["retry-after"] = after.date.toUTCString();
  if (after.ms !== undefined) headers["retry-after-ms"] = String(after.ms);
  if (after.resetRequests) headers["x-ratelimit-reset-requests"] = after.resetRequests;
  if (after.resetTokens) headers["x-ratelimit-reset-tokens"] = after.resetTokens;
  return headers;
}

function http(status: number, body: unknown, headers: Record<string, string> = {}): HttpStep {
  return { kind: "http", status, body, headers };
}

function disturb(answer: AnswerStep, disturbance: Disturbance): AnswerStep {
  return { ...answer, disturbances: [...answer.disturbances, disturbance] };
}

const someAnswer = (): AnswerStep => text("one two three four five six seven eight");

/**
 * Builders of faulty steps. Those that strike in the middle of a stream do it when `afterDeltas`
 * deltas of `answer` (default: eight words) are out, 0 being right after `response.in_progress`.
 */
export const fault = {
  /** Any status; the default body is an error in OpenAI's form. A string body is sent as it is. */
  status(status: number, options: { body?: unknown; headers?: Record<string, string> } = {}) {
    const type = status >= 500 ? "server_error" : "invalid_request_error";
    const body = options.body ?? apiError(`Simulated status ${status}.`, type);
    return http(status, body, options.headers);
  },
  rateLimit(after: RetryAfter = {}): HttpStep {
    const body = apiError("Rate limit reached.", "requests", "rate_limit_exceeded");
    return http(429, body, retryHeaders(after));
  },
  quota(code = "insufficient_quota"): HttpStep {
    const message = "You exceeded your current quota, please check your plan and billing details.";
    return http(429, apiError(message, "insufficient_quota", code));
  },
  modelNotFound(model: string): HttpStep {
    const message = `The model '${model}' does not exist or you do not have access to it.`;
    return http(404, apiError(message, "invalid_request_error", "model_not_found"));
  },
  contextLength(): HttpStep {
    const message = "Your input exceeds the context window of this model.";
    return http(
      400,
      apiError(message, "invalid_request_error", "context_length_exceeded", "input"),
    );
  },
  /** Status 200 and a body that is not JSON. */
  notJson(): HttpStep {
    return http(200, '{"id": "resp_', { "content-type": "application/json" });
  },
  /** The socket is closed before the headers. */
  destroy(): SocketStep {
    return { kind: "destroy" };
  },
  /** Nothing is ever sent; or nothing more once `afterDeltas` deltas are out. */
  silence(afterDeltas?: number, answer = someAnswer()): AnswerStep | SocketStep {
    if (afterDeltas === undefined) return { kind: "hang" };
    return disturb(answer, { kind: "silence", afterDeltas });
  },
  /** The connection breaks in the middle of the body. */
  reset(afterDeltas: number, answer = someAnswer()): AnswerStep {
    return disturb(answer, { kind: "reset", afterDeltas });
  },
  /** The body ends cleanly, but without a terminal event. */
  eof(afterDeltas: number, answer = someAnswer()): AnswerStep {
    return disturb(answer, { kind: "eof", afterDeltas });
  },
  /** An `error` event, then the end; `eventLine: false` leaves out its `event:` line. */
  errorEvent(
    afterDeltas: number,
    options: { code?: string | null; message?: string; eventLine?: boolean } = {},
    answer = someAnswer(),
  ): AnswerStep {
    const { code = "server_error", message = "Simulated error.", eventLine = true } = options;
    return disturb(answer, { kind: "error", afterDeltas, code, message, eventLine });
  },
  failed(
    afterDeltas: number,
    code: ResponseError["code"] = "server_error",
    answer = someAnswer(),
  ): AnswerStep {
    return disturb(answer, { kind: "failed", afterDeltas, code, message: "Simulated failure." });
  },
  incomplete(
    afterDeltas: number,
    reason: IncompleteReason = "max_output_tokens",
    answer = someAnswer(),
  ): AnswerStep {
    return disturb(answer, { kind: "incomplete", afterDeltas, reason });
  },
  /** Writes `frame` into the stream as it is, and goes on. */
  inject(afterDeltas: number, frame: string, answer = someAnswer()): AnswerStep {
    return disturb(answer, { kind: "inject", afterDeltas, frame });
  },
  /** A frame whose data is not JSON. */
  malformed(afterDeltas: number, answer = someAnswer()): AnswerStep {
    return fault.inject(afterDeltas, 'event: broken\ndata: {"type": "respon\n\n', answer);
  },
  /** An event of a type that no client knows yet; it takes no sequence number. */
  unknownEvent(afterDeltas: number, answer = someAnswer()): AnswerStep {
    const type = "response.future_thing.delta";
    const frame = `event: ${type}\ndata: ${JSON.stringify({ type, delta: "?" })}\n\n`;
    return fault.inject(afterDeltas, frame, answer);
  },
};
