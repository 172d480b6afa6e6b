import { APIConnectionError, APIConnectionTimeoutError, APIError, OpenAIError } from "openai";
import { StepFailure, failure, failureRules } from "../turn/failures.ts";
import type { Failure, FailureClass } from "../turn/failures.ts";
import { canNeverFit, classOfSentence, classOfWord, usedUpLimits } from "./failureWords.ts";
import { redactSecrets } from "./redaction.ts";
import { readResetMs, readRetryAfterMs, readSaidDelayMs } from "./retryAfter.ts";

const isText = (value: unknown): value is string => typeof value === "string" && value !== "";

/** What a provider says about an error, wherever it says it: in an HTTP body or in an event. */
export interface ProviderError {
  /** HTTP status; absent where the error came inside a stream. */
  status?: number | undefined;
  code?: unknown;
  type?: unknown;
  message?: unknown;
  headers?: Headers | undefined;
}

function classOfStatus(status: number): FailureClass | undefined {
  if (status === 401 || status === 403) return "authentication";
  if (status === 402) return "quota_exhausted";
  // 424 of the Responses API: an MCP server did not answer OpenAI.
  if ([408, 409, 424, 425].includes(status)) return "server_error";
  if (status === 429) return "rate_limited";
  // 529 is "overloaded" at several providers; it has no RFC.
  if (status === 503 || status === 529) return "overloaded";
  if (status >= 500) return "server_error";
  return status >= 400 ? "invalid_request" : undefined;
}

/** `x-should-retry` of the OpenAI API outranks the status, in both directions. */
function heedShouldRetry(found: FailureClass, headers: Headers | undefined): FailureClass {
  const shouldRetry = headers?.get("x-should-retry");
  const isRetried = failureRules[found].action === "retry";
  if (shouldRetry === "true" && !isRetried) return "server_error";
  // The call that follows these is another one.
  if (found === "item_not_found") return found;
  if (shouldRetry === "false" && isRetried) {
    return found === "rate_limited" ? "quota_exhausted" : "invalid_request";
  }
  return found;
}

function wordOf(value: unknown): string | undefined {
  if (typeof value !== "string" && typeof value !== "number") return undefined;
  const maxCodeChars = 64;
  const word = String(value);
  return /^[\w.-]+$/.test(word) && word.length <= maxCodeChars ? word : undefined;
}

/** Some servers put the HTTP status into `code`, as a number or as text. */
function statusOf(error: ProviderError): number | undefined {
  if (error.status !== undefined) return error.status;
  const code = Number(wordOf(error.code));
  return code >= 400 && code <= 599 ? code : undefined;
}

function classOfProviderError(
  error: ProviderError,
  message: string,
  otherwise: FailureClass,
): FailureClass {
  const status = statusOf(error);
  if (canNeverFit(message, status)) return "context_overflow";
  const named =
    classOfWord.get(wordOf(error.code) ?? "") ?? classOfWord.get(wordOf(error.type) ?? "");
  // A bare `server_error` says less than a sentence or a 503 does.
  if (named !== undefined && named !== "server_error") return named;
  const byStatus = status === undefined ? undefined : classOfStatus(status);
  const found = classOfSentence(message, status) ?? byStatus;
  if (found !== undefined) return heedShouldRetry(found, error.headers);
  if (named !== undefined) return otherwise;
  return error.type === "invalid_request_error" ? "invalid_request" : otherwise;
}

/** The provider's `x-request-id`; undefined if it has none, or one that is no id. */
export function requestIdOf(headers: Headers | undefined): string | undefined {
  const requestId = headers?.get("x-request-id") ?? "";
  return /^[\w.:-]{1,128}$/.test(requestId) ? requestId : undefined;
}

function detailsOf(error: ProviderError) {
  const word = wordOf(error.code);
  return {
    code: word !== undefined && !/^\d+$/.test(word) ? word : undefined,
    requestId: requestIdOf(error.headers),
  };
}

/**
 * The failure for an error that a provider reports. `otherwise` is the class where nothing in it is
 * known: `server_error` for events and bodies, `response_failed` for `response.failed`.
 */
export function classifyProviderError(
  error: ProviderError,
  otherwise: FailureClass = "server_error",
): Failure {
  const said = redactSecrets(typeof error.message === "string" ? error.message : "");
  const failureClass = classOfProviderError(error, said, otherwise);
  const message = failureClass === "quota_exhausted" ? nameLimit(error, said) : said;
  return failure(failureClass, message === "" ? undefined : message, {
    ...detailsOf(error),
    retryAfterMs: delayOf(error, failureClass, said),
  });
}

function nameLimit(error: ProviderError, said: string): string {
  const limit =
    usedUpLimits.get(wordOf(error.code) ?? "") ?? usedUpLimits.get(wordOf(error.type) ?? "");
  return limit === undefined ? said : `${limit} is used up. ${said}`;
}

/**
 * The provider's word on when to come back. The sentence and `x-ratelimit-reset-*` are asked for a
 * rate limit only: OpenAI sends the latter with every answer, and there they are no advice to wait.
 */
function delayOf(error: ProviderError, found: FailureClass, said: string): number | undefined {
  if (failureRules[found].action !== "retry") return undefined;
  const { headers = new Headers() } = error;
  const asked = readRetryAfterMs(headers, new Date());
  if (asked !== undefined || found !== "rate_limited") return asked;
  return readSaidDelayMs(said) ?? readResetMs(headers);
}

function classifyApiError(error: APIError): Failure {
  const { status, code, type, headers } = error;
  // xAI and Ollama have the sentence where others have an object, FastAPI has it in `detail`.
  const body = error.error as { message?: unknown; detail?: unknown } | null | undefined;
  const said = [body, body?.message, body?.detail].find(isText);
  const isBareNotFound = status === 404 && said === undefined;
  // Without a status, the SDK's own message is the whole event as JSON.
  const otherwise = status === undefined ? undefined : error.message;
  const message = isBareNotFound
    ? "404: nothing is there; check that OPENAI_BASE_URL serves /responses."
    : (said ?? otherwise);
  return classifyProviderError({ status, code, type, message, headers });
}

/** An error with what it was caused by, from the outside in. */
export function causes(error: unknown): { code?: unknown; message?: unknown }[] {
  const maxDepth = 5;
  const chain: { code?: unknown; message?: unknown; cause?: unknown }[] = [];
  let current = error;
  while (typeof current === "object" && current !== null && chain.length < maxDepth) {
    chain.push(current);
    current = (current as { cause?: unknown }).cause;
  }
  return chain;
}

function classifyConnectionError(error: APIConnectionError): Failure {
  const chain = causes(error);
  const codes = chain.map((cause) => cause.code).filter((code) => typeof code === "string");
  if (error instanceof APIConnectionTimeoutError && !codes.includes("UND_ERR_CONNECT_TIMEOUT")) {
    return failure("stream_silent", "The provider sent no headers within the timeout.");
  }
  const reason = [...new Set(chain.map((cause) => cause.message))].join(": ");
  return failure("transport", redactSecrets(reason));
}

/** Codes of undici and Node for a connection that breaks while a body is read. */
const resetCodes = new Set([
  "ECONNRESET",
  "EPIPE",
  "ETIMEDOUT",
  "UND_ERR_SOCKET",
  "UND_ERR_ABORTED",
  "UND_ERR_DESTROYED",
  "UND_ERR_RES_CONTENT_LENGTH_MISMATCH",
  "ERR_STREAM_PREMATURE_CLOSE",
]);

function isReset(error: unknown): boolean {
  // undici's fetch reports a broken body as a bare TypeError with this message.
  if (error instanceof TypeError && error.message === "terminated") return true;
  return causes(error).some(({ code }) => typeof code === "string" && resetCodes.has(code));
}

/**
 * The one place where what goes wrong between us and a provider becomes a class [11]. What did not
 * come from a provider or the network is `internal`.
 */
export function classifyFailure(error: unknown): Failure {
  if (error instanceof StepFailure) return error.failure;
  if (error instanceof APIConnectionError) return classifyConnectionError(error);
  if (error instanceof APIError) return classifyApiError(error);
  if (isReset(error)) return failure("stream_reset");
  // A whole answer that is no JSON, and whatever else the SDK finds wrong with one.
  if (error instanceof SyntaxError || error instanceof OpenAIError) {
    return failure("malformed_answer", redactSecrets(error.message));
  }
  return failure("internal");
}
