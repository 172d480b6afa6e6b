/**
 * Every failure has one class, and the class alone decides what happens [11].
 * The table is documented in docs/failures.md; the two are kept equal by a test.
 */

/** What is done about a failure: try the step again, fail the turn, or end it as incomplete. */
export type FailureAction = "retry" | "fail" | "incomplete";

export interface FailureRule {
  readonly action: FailureAction;
  /** The HTTP status that a caller without a stream sees. */
  readonly httpStatus: number;
  /** OpenAI's `error.type` for that answer. */
  readonly type: string;
  /** What it means and what to do about it, in one sentence. */
  readonly meaning: string;
}

function rule(
  action: FailureAction,
  httpStatus: number,
  type: string,
  meaning: string,
): FailureRule {
  return { action, httpStatus, type, meaning };
}

export const failureRules = {
  rate_limited: rule(
    "retry",
    429,
    "rate_limit_error",
    "The provider limits the rate; the step waits as long as the provider says, then runs again.",
  ),
  quota_exhausted: rule(
    "fail",
    429,
    "insufficient_quota",
    "A quota or a spending limit of the provider account is used up; add credit or raise the limit that the message names.",
  ),
  overloaded: rule(
    "retry",
    503,
    "server_error",
    "The provider is overloaded; the step runs again after a growing delay.",
  ),
  server_error: rule(
    "retry",
    502,
    "server_error",
    "The provider failed; the step runs again after a growing delay.",
  ),
  transport: rule(
    "retry",
    502,
    "server_error",
    "The connection to the provider failed before an answer began; check OPENAI_BASE_URL if it persists.",
  ),
  stream_reset: rule(
    "retry",
    502,
    "server_error",
    "The connection broke in the middle of the answer; the call is made again.",
  ),
  stream_silent: rule(
    "retry",
    504,
    "server_error",
    "The provider sent nothing for longer than the idle timeout; the call is made again.",
  ),
  stream_truncated: rule(
    "retry",
    502,
    "server_error",
    "The stream ended without a terminal event; the call is made again.",
  ),
  response_failed: rule(
    "retry",
    502,
    "server_error",
    "The provider ended the response as failed; the call is made again.",
  ),
  response_cancelled: rule(
    "retry",
    502,
    "server_error",
    "The response was cancelled on the provider's side; the call is made again.",
  ),
  malformed_answer: rule(
    "retry",
    502,
    "server_error",
    "The provider sent something that is no Responses API answer; check that OPENAI_BASE_URL serves /responses.",
  ),
  context_overflow: rule(
    "fail",
    400,
    "invalid_request_error",
    "The conversation is longer than the model's context window; shorten it or choose another model.",
  ),
  item_not_found: rule(
    "retry",
    400,
    "invalid_request_error",
    "The provider does not have, or cannot use, an item of the input; the call is made once more without reasoning items.",
  ),
  previous_response_not_found: rule(
    "fail",
    400,
    "invalid_request_error",
    "The provider does not have the response that the request builds on; Turnkeeper names none, so look at what lies between.",
  ),
  invalid_request: rule(
    "fail",
    400,
    "invalid_request_error",
    "The provider refused the request; the message says which part.",
  ),
  model_not_found: rule(
    "fail",
    404,
    "invalid_request_error",
    "The provider does not have this model; choose another one or define an agent of that name.",
  ),
  authentication: rule(
    "fail",
    500,
    "server_error",
    "The provider refused Turnkeeper's own API key; check OPENAI_API_KEY.",
  ),
  content_refused: rule(
    "fail",
    400,
    "invalid_request_error",
    "The provider's policy refused the content.",
  ),
  output_too_large: rule(
    "fail",
    502,
    "server_error",
    "The model wrote more than the limit for one turn allows.",
  ),
  unknown_agent: rule(
    "fail",
    404,
    "invalid_request_error",
    "No agent of that name and version is registered.",
  ),
  unanswered_calls: rule(
    "fail",
    400,
    "invalid_request_error",
    "The request does not answer all function calls that the conversation waits for.",
  ),
  step_limit: rule(
    "incomplete",
    200,
    "invalid_request_error",
    "The turn reached its limit of steps.",
  ),
  token_limit: rule(
    "incomplete",
    200,
    "invalid_request_error",
    "The turn reached its limit of tokens.",
  ),
  cost_limit: rule(
    "incomplete",
    200,
    "invalid_request_error",
    "The turn reached its limit of cost.",
  ),
  no_progress: rule(
    "incomplete",
    200,
    "invalid_request_error",
    "The model made the same call with the same result again and again.",
  ),
  deadline: rule("incomplete", 200, "invalid_request_error", "The turn reached its deadline."),
  attempts_exhausted: rule(
    "fail",
    502,
    "server_error",
    "Temporal gave a step up after many attempts, none of which could end it; the worker's log has more.",
  ),
  workflow_gone: rule(
    "fail",
    500,
    "server_error",
    "The turn's workflow was terminated, timed out or closed without an ending; send the request again.",
  ),
  internal: rule(
    "fail",
    500,
    "server_error",
    "Turnkeeper itself failed; the log of the worker has the cause under the turn's id.",
  ),
} as const satisfies Record<string, FailureRule>;

export type FailureClass = keyof typeof failureRules;

/** A failure as it is recorded and shown. `code` is stable; `message` says what to do. */
export interface Failure {
  class: FailureClass;
  /** The provider's own code where it gave one, else the class. */
  code: string;
  /** One line, at most `maxFailureMessageChars` characters, without secrets. */
  message: string;
  /** How long the provider asked to wait before the next try, in milliseconds. */
  retryAfterMs?: number;
  /** The provider's `x-request-id`. */
  requestId?: string;
}

export const maxFailureMessageChars = 500;
export const maxFailureCodeChars = 64;

/** Makes a {@link Failure}; the message is cut to one line of bounded length. */
export function failure(
  failureClass: FailureClass,
  message: string = failureRules[failureClass].meaning,
  details: {
    code?: string | undefined;
    retryAfterMs?: number | undefined;
    requestId?: string | undefined;
  } = {},
): Failure {
  const line = message.replaceAll(/\s+/g, " ").trim().slice(0, maxFailureMessageChars);
  return {
    class: failureClass,
    code: (details.code ?? failureClass).slice(0, maxFailureCodeChars),
    message: line.toWellFormed(),
    ...(details.retryAfterMs === undefined ? {} : { retryAfterMs: details.retryAfterMs }),
    ...(details.requestId === undefined ? {} : { requestId: details.requestId }),
  };
}

/** Thrown inside a step when it meets a failure. Never crosses into Temporal: only its class does. */
export class StepFailure extends Error {
  readonly failure: Failure;

  constructor(cause: Failure, options?: ErrorOptions) {
    super(`${cause.class}: ${cause.message}`, options);
    this.name = "StepFailure";
    this.failure = cause;
  }
}

/** The codes of requests that are refused before a turn is on record. */
export const refusalRules = {
  invalid_json: { httpStatus: 400, type: "invalid_request_error" },
  invalid_value: { httpStatus: 400, type: "invalid_request_error" },
  unknown_parameter: { httpStatus: 400, type: "invalid_request_error" },
  unsupported_parameter: { httpStatus: 400, type: "invalid_request_error" },
  missing_required_parameter: { httpStatus: 400, type: "invalid_request_error" },
  too_deep: { httpStatus: 400, type: "invalid_request_error" },
  body_too_large: { httpStatus: 413, type: "invalid_request_error" },
  unsupported_media_type: { httpStatus: 415, type: "invalid_request_error" },
  request_timeout: { httpStatus: 408, type: "invalid_request_error" },
  headers_too_large: { httpStatus: 431, type: "invalid_request_error" },
  invalid_http: { httpStatus: 400, type: "invalid_request_error" },
  origin_not_allowed: { httpStatus: 403, type: "permission_error" },
  invalid_api_key: { httpStatus: 401, type: "invalid_request_error" },
  unknown_agent: { httpStatus: 404, type: "invalid_request_error" },
  unknown_project: { httpStatus: 404, type: "invalid_request_error" },
  model_not_found: { httpStatus: 404, type: "invalid_request_error" },
  conversation_not_found: { httpStatus: 404, type: "invalid_request_error" },
  item_not_found: { httpStatus: 404, type: "invalid_request_error" },
  response_not_found: { httpStatus: 404, type: "invalid_request_error" },
  route_not_found: { httpStatus: 404, type: "invalid_request_error" },
  previous_response_not_found: { httpStatus: 400, type: "invalid_request_error" },
  previous_response_unusable: { httpStatus: 400, type: "invalid_request_error" },
  unanswered_calls: { httpStatus: 400, type: "invalid_request_error" },
  unknown_call: { httpStatus: 400, type: "invalid_request_error" },
  tool_name_conflict: { httpStatus: 400, type: "invalid_request_error" },
  idempotency_key_reused: { httpStatus: 422, type: "invalid_request_error" },
  not_replayable: { httpStatus: 400, type: "invalid_request_error" },
  conversation_busy: { httpStatus: 409, type: "conflict_error" },
  queue_full: { httpStatus: 429, type: "rate_limit_error" },
  stream_expired: { httpStatus: 400, type: "invalid_request_error" },
  store_unavailable: { httpStatus: 503, type: "server_error" },
  gateway_closing: { httpStatus: 503, type: "server_error" },
} as const;

export type RefusalCode = keyof typeof refusalRules;

/**
 * Thrown by the client and the gateway when a request cannot be taken; nothing has been recorded,
 * save perhaps where `store_unavailable` says that the answer of the database was lost.
 * `code` is stable and documented in docs/errors.md; `param` names the offending field.
 */
export class Refusal extends Error {
  readonly code: RefusalCode;
  readonly httpStatus: number;
  readonly type: string;
  readonly param: string | null;

  constructor(
    code: RefusalCode,
    message: string,
    param: string | null = null,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = "Refusal";
    this.code = code;
    this.httpStatus = refusalRules[code].httpStatus;
    this.type = refusalRules[code].type;
    this.param = param;
  }
}
