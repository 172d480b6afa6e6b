import type { FailureClass } from "../turn/failures.ts";

/**
 * `error.code` and `error.type` that say more than the status. Sources: the error codes of the
 * OpenAI API reference, `Response.error.code` in the openai package's types, and what vLLM,
 * llama.cpp, LiteLLM, Anthropic and Azure put in the same place.
 */
export const classOfWord: ReadonlyMap<string, FailureClass> = new Map(
  (
    [
      [
        "quota_exhausted",
        "insufficient_quota billing_hard_limit_reached billing_not_active credit_balance_exhausted " +
          "organization_spend_limit_exceeded project_spend_limit_exceeded " +
          "organization_usage_limit_exceeded billing_error budget_exceeded usage_limit_reached",
      ],
      [
        "rate_limited",
        "rate_limit_exceeded rate_limit_error requests tokens tokens_per_min too_many_requests " +
          "RateLimitReached",
      ],
      [
        "overloaded",
        "slow_down overloaded overloaded_error engine_overloaded server_overloaded " +
          "server_is_overloaded service_unavailable_error no_capacity",
      ],
      [
        "context_overflow",
        "context_length_exceeded exceed_context_size_error too_many_prompt_tokens",
      ],
      ["model_not_found", "model_not_found unknown_model deployment_not_found DeploymentNotFound"],
      ["item_not_found", "item_not_found invalid_encrypted_content"],
      ["previous_response_not_found", "previous_response_not_found"],
      [
        "authentication",
        "invalid_api_key invalid_organization mismatched_organization authentication_error " +
          "permission_error account_deactivated access_terminated unsupported_country_region_territory",
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
export const usedUpLimits: ReadonlyMap<string, string> = new Map([
  ["insufficient_quota", "The account's quota"],
  ["credit_balance_exhausted", "The account's prepaid credit"],
  ["organization_spend_limit_exceeded", "The organization's spend limit"],
  ["project_spend_limit_exceeded", "The project's spend limit"],
  ["organization_usage_limit_exceeded", "The organization's usage limit"],
  ["billing_hard_limit_reached", "The account's hard billing limit"],
  ["budget_exceeded", "The proxy's budget"],
]);

/**
 * What servers give no code for, or proxies hide behind a code of their own, only a sentence says. Each was
 * read on a wire; `test/wire/` has who said it.
 */
const sentences: readonly (readonly [FailureClass, RegExp])[] = [
  ["item_not_found", /\bitem with id .* not found/i],
  ["item_not_found", /'reasoning' was provided without its required following item/i],
  ["item_not_found", /encrypted content\b[^]*could not be verified/i],
  ["previous_response_not_found", /\bresponse with id .* not found/i],
  ["quota_exhausted", /credit balance is too low|run out of credits|used all available credits/i],
  ["quota_exhausted", /^key limit exceeded|\bcrossed budget\b/i],
  [
    "overloaded",
    /\boverloaded with other requests|\bmodel is at capacity|experiencing high demand/i,
  ],
  ["content_refused", /content management policy/i],
  ["model_not_found", /invalid model name passed in model=/i],
  ["authentication", /^incorrect API key provided/i],
  ["rate_limited", /\bexceeded (the )?(\w+ )?rate limit/i],
];

const contextOverflowSentence = new RegExp(
  [
    "(maximum|max|available|model'?s?) context (length|size|window)",
    "context (window|limit)|ContextWindowExceeded|prompt is too long",
    "context size has been exceeded|greater than the context length|context length of only",
    "exceeds? the (maximum number of tokens allowed|configured limit)",
  ].join("|"),
  "i",
);
const modelNotFoundSentence = /\bmodel\b.*(not found|does(n't| not) exist|no such)/i;

/** The class that a sentence stands for, whatever the code and the status; undefined: none. */
export function classOfSentence(message: string, status?: number): FailureClass | undefined {
  // What is not there has no context; other 4xx speak of other models than the one that was asked for.
  if (status !== 404 && contextOverflowSentence.test(message)) return "context_overflow";
  const found = sentences.find(([, sentence]) => sentence.test(message));
  if (found !== undefined) return found[0];
  const mayMeanModel = status === undefined || status === 404;
  return mayMeanModel && modelNotFoundSentence.test(message) ? "model_not_found" : undefined;
}

/**
 * OpenAI's rate limit error for a request that is larger than a whole minute's tokens. It says the same of
 * a request that is not, which only has to wait.
 */
export function canNeverFit(message: string, status?: number): boolean {
  if (![undefined, 413, 429].includes(status) || !/\brequest too large/i.test(message))
    return false;
  const [, limit, requested] = /\bLimit (\d+), Requested (\d+)/i.exec(message) ?? [];
  return limit === undefined || Number(requested) > Number(limit);
}
