import { APIConnectionError, APIConnectionTimeoutError, APIError, OpenAIError } from "openai";
import { StepFailure, failure, failureRules } from "../turn/failures.ts";
import type { Failure, FailureClass } from "../turn/failures.ts";
import { redactSecrets } from "./redaction.ts";
import { readResetMs, readRetryAfterMs, readSaidDelayMs } from "./retryAfter.ts";

/** What a provider says about an error, wherever it says it: in an HTTP body or in an event. */
export interface ProviderError {
  /** HTTP status; absent where the error came inside a stream. */
  status?: number | undefined;
  code?: unknown;
  type?: unknown;
  message?: unknown;
  headers?: Headers | undefined;
}

/**
 * `error.code` and `error.type` that say more than the status. Sources: the error codes of the
 * OpenAI API reference, `Response.error.code` in the openai package's types, and what vLLM,
 * llama.cpp, LiteLLM, Anthropic and Azure put in the same place.
 */
const classOfWord: ReadonlyMap<string, FailureClass> = new Map(
  (
    [
      [
        "quota_exhausted",
        "insufficient_quota billing_hard_limit_reached billing_not_active credit_balance_exhausted " +
          "organization_spend_limit_exceeded project_spend_limit_exceeded " +
          "organization_usage_limit_exceeded access_terminated billing_error budget_exceeded",
      ],
      [
        "rate_limited",
        "rate_limit_exceeded rate_limit_error requests tokens tokens_per_min too_many_requests",
      ],
      [
        "overloaded",
        "slow_down overloaded overloaded_error engine_overloaded server_overloaded " +
          "server_is_overloaded",
      ],
      ["context_overflow", "context_length_exceeded exceed_context_size_error"],
      ["model_not_found", "model_not_found deployment_not_found DeploymentNotFound"],
      ["item_not_found", "item_not_found invalid_encrypted_content"],
      ["previous_response_not_found", "previous_response_not_found"],
      [
        "authentication",
        "invalid_api_key invalid_organization mismatched_organization authentication_error " +
          "permission_error account_deactivated unsupported_country_region_territory",
      ],
      [
        "content_refused",
        "invalid_prompt content_policy_violation content_filter bio_policy cyber_policy " +
          "misalignment_policy_violation image_content_policy_violation " +
          "responsible_ai_policy_violation moderation_blocked",
      ],
      [
        "invalid_request",
        "data_residency_mismatch invalid_image invalid_image_format invalid_base64_image " +
          "invalid_image_url image_too_large image_too_small image_parse_error invalid_image_mode " +
          "image_file_too_large unsupported_image_media_type empty_image_file " +
          "failed_to_download_image image_file_not_found unsupported_parameter " +
          "unsupported_value unknown_parameter missing_required_parameter invalid_value " +
          "invalid_type string_above_max_length",
      ],
      ["server_error", "server_error internal_error internal_server_error api_error timeout_error"],
      ["response_failed", "vector_store_timeout"],
    ] as const satisfies readonly (readonly [FailureClass, string])[]
  ).flatMap(([failureClass, words]) => words.split(" ").map((word) => [word, failureClass])),
);

/** Which limit is meant, where the code says it and the message need not. */
const usedUpLimits: ReadonlyMap<string, string> = new Map([
  ["insufficient_quota", "The account's quota"],
  ["credit_balance_exhausted", "The account's prepaid credit"],
  ["organization_spend_limit_exceeded", "The organization's spend limit"],
  ["project_spend_limit_exceeded", "The project's spend limit"],
  ["organization_usage_limit_exceeded", "The organization's usage limit"],
  ["billing_hard_limit_reached", "The account's hard billing limit"],
  ["budget_exceeded", "The proxy's budget"],
]);

/** Some servers, OpenAI's among them, give no code for these, only a sentence. */
const contextOverflowMessage =
  /(maximum|max|available|model'?s?) context (length|size|window)|context window|prompt is too long/i;
const modelNotFoundMessage = /\bmodel\b.*(not found|does(n't| not) exist|no such)/i;
const itemNotFoundMessage =
  /\bitem with id .* not found|'reasoning' was provided without its required following item/i;
const responseNotFoundMessage = /\bresponse with id .* not found/i;

/** OpenAI's 429 for a request that is larger than a whole minute's tokens: it can never succeed. */
const requestTooLargeMessage = /^request too large/i;

function classOfSentence(message: string, status?: number): FailureClass | undefined {
  if (status !== 404 && contextOverflowMessage.test(message)) return "context_overflow";
  if (itemNotFoundMessage.test(message)) return "item_not_found";
  if (responseNotFoundMessage.test(message)) return "previous_response_not_found";
  return status !== 400 && modelNotFoundMessage.test(message) ? "model_not_found" : undefined;
}

function classOfStatus(status: number, message: string): FailureClass | undefined {
  if (status === 400 || status === 404)
    return classOfSentence(message, status) ?? "invalid_request";
  if (status === 401 || status === 403) return "authentication";
  if (status === 402) return "quota_exhausted";
  if (status === 408 || status === 409 || status === 425) return "server_error";
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
  const named =
    classOfWord.get(wordOf(error.code) ?? "") ?? classOfWord.get(wordOf(error.type) ?? "");
  const status = statusOf(error);
  if (status === 429 && requestTooLargeMessage.test(message)) return "context_overflow";
  // A bare `server_error` says less than a 503 does.
  if (named !== undefined && named !== "server_error") return named;
  const byStatus = status === undefined ? undefined : classOfStatus(status, message);
  if (byStatus !== undefined) return heedShouldRetry(byStatus, error.headers);
  if (named !== undefined) return otherwise;
  const bySentence = classOfSentence(message);
  if (bySentence !== undefined) return bySentence;
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
  const body = error.error as { message?: unknown } | null | undefined;
  const said = typeof body?.message === "string" && body.message !== "" ? body.message : undefined;
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
  // The SDK throws these for an event that is not JSON and for an answer without a body.
  if (error instanceof SyntaxError || error instanceof OpenAIError) {
    return failure("malformed_answer", redactSecrets(error.message));
  }
  return failure("internal");
}
