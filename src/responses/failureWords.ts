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

/** What a sentence is asked of: without a status it came in a stream. */
interface Sentence {
  means: FailureClass;
  says: RegExp;
  at: readonly (number | undefined)[];
}

/** Where a provider's sentence begins, also inside the one that a LiteLLM proxy makes of it. */
const begins = '(?:^|Exception - |"message": ?")';

function sentence(
  means: FailureClass,
  at: readonly (number | undefined)[],
  ...says: string[]
): Sentence {
  return { means, at, says: new RegExp(says.join("|"), "i") };
}

const inStream = undefined;

/**
 * What servers give no code for, or proxies hide behind a code of their own, only a sentence says. Each is
 * believed only with the statuses that it was seen with, because messages may quote what a user wrote.
 */
const sentences: readonly Sentence[] = [
  sentence(
    "context_overflow",
    [inStream, 400, 413],
    "(maximum|max|available|model'?s?) context (length|size|window)",
    "context window|exceed context limit|ContextWindowExceeded|prompt is too long",
    "greater than the context length|context length of only",
    "exceeds? the (maximum number of tokens allowed|configured limit of \\d+ tokens)",
  ),
  sentence(
    "context_overflow",
    [inStream, 500],
    `${begins}Context size has been exceeded`,
    "exceeds the context window of this model",
  ),
  sentence(
    "item_not_found",
    [inStream, 400, 404],
    "\\bitem with id .* not found",
    "'reasoning' was provided without its required following item",
    "encrypted content\\b[^]*could not be verified",
  ),
  sentence("previous_response_not_found", [inStream, 400, 404], "\\bresponse with id .* not found"),
  sentence(
    "quota_exhausted",
    [inStream, 400, 403, 429],
    `${begins}Your credit balance is too low`,
    `${begins}Your team .{0,80}has either used all available credits`,
    `${begins}You have run out of credits`,
    `${begins}Key limit exceeded`,
    "^No deployments available - crossed budget",
  ),
  sentence(
    "overloaded",
    [inStream, 429, 500],
    `${begins}(The server|That model) is currently overloaded with other requests`,
    `${begins}Selected model is at capacity`,
    `${begins}The system is currently experiencing high demand`,
  ),
  sentence("content_refused", [inStream, 400], "Azure OpenAI's content management policy"),
  sentence("model_not_found", [400], "Invalid model name passed in model="),
  sentence(
    "model_not_found",
    [inStream, 404],
    "\\bmodel\\b.*(not found|does(n't| not) exist|no such)",
  ),
  sentence("authentication", [400], "^Incorrect API key provided"),
  sentence(
    "rate_limited",
    [inStream],
    `${begins}(Your )?requests to .{1,200} exceeded (the )?(\\w+ )?rate limit`,
  ),
];

/** Further on, messages have details and quote the request. */
const sentenceChars = 400;

/** The class that a sentence stands for, whatever the code; undefined: none. */
export function classOfSentence(message: string, status?: number): FailureClass | undefined {
  const said = message.slice(0, sentenceChars);
  return sentences.find(({ at, says }) => at.includes(status) && says.test(said))?.means;
}

/**
 * OpenAI's rate limit error for a request that is larger than a whole minute's tokens. It says the same of
 * a request that is not, which only has to wait.
 */
export function canNeverFit(message: string, status?: number): boolean {
  if (![undefined, 413, 429].includes(status)) return false;
  if (!/(^|Exception - )request too large/i.test(message)) return false;
  const figures = /\bLimit:? ([\d,]+)(?:, Used:? [\d,]+)?, Requested:? ([\d,]+)/i.exec(message);
  const [limit, requested] = (figures ?? [])
    .slice(1)
    .map((each) => Number(each.replaceAll(",", "")));
  return limit === undefined || requested === undefined || requested > limit;
}
