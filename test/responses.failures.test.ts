import { APIConnectionError, APIConnectionTimeoutError, APIError, OpenAIError } from "openai";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { classifyFailure, classifyProviderError } from "../src/responses/failures.ts";
import { redactSecrets } from "../src/responses/redaction.ts";
import { readResetMs, readRetryAfterMs, readSaidDelayMs } from "../src/responses/retryAfter.ts";
import { StepFailure, failure, failureRules } from "../src/turn/failures.ts";
import type { FailureClass } from "../src/turn/failures.ts";

function httpError(status: number, error: object | undefined, headers = {}): APIError {
  return APIError.generate(status, error && { error }, undefined, new Headers(headers));
}

function classOf(status: number, error: object | undefined, headers = {}): FailureClass {
  return classifyFailure(httpError(status, error, headers)).class;
}

describe("HTTP errors", () => {
  it.each([
    [400, "invalid_request"],
    [401, "authentication"],
    [402, "quota_exhausted"],
    [403, "authentication"],
    [404, "invalid_request"],
    [408, "server_error"],
    [409, "server_error"],
    [413, "invalid_request"],
    [422, "invalid_request"],
    [425, "server_error"],
    [429, "rate_limited"],
    [500, "server_error"],
    [502, "server_error"],
    [503, "overloaded"],
    [504, "server_error"],
    [529, "overloaded"],
  ] as const)(
    "are classified by status where they say nothing else: %i is %s",
    (status, expected) => {
      expect(classOf(status, undefined)).toBe(expected);
      expect(classOf(status, { message: "Sorry." })).toBe(expected);
    },
  );

  it.each([
    [429, "rate_limit_exceeded", "tokens", "rate_limited"],
    [429, "slow_down", "server_error", "overloaded"],
    [503, "slow_down", "server_error", "overloaded"],
    [429, "insufficient_quota", "insufficient_quota", "quota_exhausted"],
    [429, "credit_balance_exhausted", "insufficient_quota", "quota_exhausted"],
    [429, "organization_spend_limit_exceeded", "insufficient_quota", "quota_exhausted"],
    [429, "project_spend_limit_exceeded", "insufficient_quota", "quota_exhausted"],
    [429, "organization_usage_limit_exceeded", "insufficient_quota", "quota_exhausted"],
    [429, "some_future_limit", "insufficient_quota", "quota_exhausted"],
    [429, "billing_hard_limit_reached", "invalid_request_error", "quota_exhausted"],
    [503, "server_error", "server_error", "overloaded"],
    [404, "model_not_found", "invalid_request_error", "model_not_found"],
    [403, "model_not_found", "invalid_request_error", "model_not_found"],
    [400, "context_length_exceeded", "invalid_request_error", "context_overflow"],
    [400, "content_policy_violation", "invalid_request_error", "content_refused"],
    [400, "content_filter", null, "content_refused"],
    [400, "previous_response_not_found", "invalid_request_error", "previous_response_not_found"],
    [400, "invalid_encrypted_content", "invalid_request_error", "item_not_found"],
    [400, null, "exceed_context_size_error", "context_overflow"],
    [529, null, "overloaded_error", "overloaded"],
  ] as const)("%i with code %s and type %s is %s", (status, code, type, expected) => {
    expect(classOf(status, { message: "Sorry.", code, type })).toBe(expected);
  });

  it.each([
    [400, "This model's maximum context length is 4096 tokens.", "context_overflow"],
    [400, "the request exceeds the available context size", "context_overflow"],
    [404, "The model `x` does not exist.", "model_not_found"],
    [404, 'model "x" not found, try pulling it first', "model_not_found"],
    [404, "Item with id 'rs_1' not found.", "item_not_found"],
    [404, "Response with id 'resp_1' not found.", "previous_response_not_found"],
    [
      429,
      "Request too large for gpt-x on tokens per min (TPM): Limit 1, Requested 2",
      "context_overflow",
    ],
  ] as const)("%i is known by its sentence: %s", (status, message, expected) => {
    expect(classOf(status, { message })).toBe(expected);
  });

  it("say where to look when a bare 404 means a wrong base URL", () => {
    expect(classifyFailure(httpError(404, undefined)).message).toContain("OPENAI_BASE_URL");
  });

  it.each([
    [500, "false", "invalid_request"],
    [429, "false", "quota_exhausted"],
    [409, "false", "invalid_request"],
    [400, "true", "server_error"],
    [404, "true", "server_error"],
    [500, "true", "server_error"],
    [503, "true", "overloaded"],
    [400, "false", "invalid_request"],
  ] as const)(
    "heed x-should-retry over the status: %i with %s is %s",
    (status, header, expected) => {
      expect(classOf(status, undefined, { "x-should-retry": header })).toBe(expected);
    },
  );

  it("never let x-should-retry outrank a code that cannot succeed", () => {
    const error = { message: "Too long.", code: "context_length_exceeded" };
    expect(classOf(400, error, { "x-should-retry": "true" })).toBe("context_overflow");
  });

  it("keep the provider's code, request id and delay", () => {
    const headers = { "x-request-id": "req_1", "retry-after": "7" };
    const error = { message: "Slow.", code: "rate_limit_exceeded" };
    expect(classifyFailure(httpError(429, error, headers))).toEqual({
      class: "rate_limited",
      code: "rate_limit_exceeded",
      message: "Slow.",
      retryAfterMs: 7_000,
      requestId: "req_1",
    });
  });

  it.each([
    ["insufficient_quota", "The account's quota is used up."],
    ["credit_balance_exhausted", "The account's prepaid credit is used up."],
    ["organization_spend_limit_exceeded", "The organization's spend limit is used up."],
    ["project_spend_limit_exceeded", "The project's spend limit is used up."],
    ["organization_usage_limit_exceeded", "The organization's usage limit is used up."],
    ["billing_hard_limit_reached", "The account's hard billing limit is used up."],
    ["budget_exceeded", "The proxy's budget is used up."],
  ])("say which limit is used up: %s", (code, sentence) => {
    const found = classifyFailure(httpError(429, { message: "No more.", code }));
    expect(found).toMatchObject({ class: "quota_exhausted", message: `${sentence} No more.` });
  });

  it("take the resets of rate limits for a delay where a rate limit was met, and nowhere else", () => {
    const headers = { "x-ratelimit-reset-tokens": "6m0s" };
    expect(classifyFailure(httpError(429, undefined, headers)).retryAfterMs).toBe(360_000);
    expect(classifyFailure(httpError(500, undefined, headers))).not.toHaveProperty("retryAfterMs");
  });

  it("carry no delay where nothing is tried again", () => {
    const error = { message: "Empty.", code: "insufficient_quota" };
    const found = classifyFailure(httpError(429, error, { "retry-after": "7" }));
    expect(found).not.toHaveProperty("retryAfterMs");
  });

  it("become a failure whatever the provider puts into them", () => {
    const anything = fc.anything({ withNullPrototype: true });
    const bodies = fc.record({ message: anything, code: anything, type: anything });
    fc.assert(
      fc.property(fc.option(fc.integer({ min: 100, max: 599 })), bodies, (status, body) => {
        const found = classifyProviderError({ status: status ?? undefined, ...body });
        expect(failureRules).toHaveProperty([found.class]);
        expect(found.message.length).toBeLessThanOrEqual(500);
        expect(found.code).toMatch(/^[\w.-]{1,64}$/);
      }),
    );
  });
});

describe("errors that are no HTTP answer", () => {
  const cause = (code: string) => Object.assign(new Error(`${code} happened`), { code });

  it.each<[string, unknown, FailureClass]>([
    ["a refused connection", new APIConnectionError({ cause: cause("ECONNREFUSED") }), "transport"],
    [
      "a connect timeout",
      Object.assign(new APIConnectionTimeoutError(), { cause: cause("UND_ERR_CONNECT_TIMEOUT") }),
      "transport",
    ],
    ["a header timeout", new APIConnectionTimeoutError(), "stream_silent"],
    ["undici's terminated", new TypeError("terminated"), "stream_reset"],
    ["a reset under it", new Error("read", { cause: cause("ECONNRESET") }), "stream_reset"],
    ["a premature close", cause("ERR_STREAM_PREMATURE_CLOSE"), "stream_reset"],
    ["an event that is not JSON", new SyntaxError("malformed"), "malformed_answer"],
    ["an answer without a body", new OpenAIError("no body"), "malformed_answer"],
    [
      "an error event without a status",
      new APIError(undefined, {}, "x", undefined),
      "server_error",
    ],
    ["a failure", new StepFailure(failure("deadline")), "deadline"],
    ["a bug of ours", new RangeError("oops"), "internal"],
    ["nothing", undefined, "internal"],
  ])("%s", (_, error, expected) => {
    expect(classifyFailure(error).class).toBe(expected);
  });

  it("does not follow a chain of causes for ever", () => {
    const circular = new Error("circular");
    circular.cause = circular;
    expect(classifyFailure(circular).class).toBe("internal");
  });
});

describe("the delay before the next try", () => {
  const now = new Date("2026-11-03T12:00:00Z");

  it.each<[Record<string, string>, number | undefined]>([
    [{}, undefined],
    [{ "retry-after": "90" }, 90_000],
    [{ "retry-after": "0" }, 0],
    [{ "retry-after": "1.5" }, 1_500],
    [{ "retry-after": "Tue, 03 Nov 2026 12:00:30 GMT" }, 30_000],
    [{ "retry-after": "Tue, 03 Nov 2026 11:00:00 GMT" }, 0],
    [{ "retry-after": "soon" }, undefined],
    [{ "retry-after-ms": "150", "retry-after": "30" }, 150],
    [{ "retry-after-ms": "x", "retry-after": "30" }, 30_000],
    [{ "retry-after": "99999999999" }, 86_400_000],
  ])("asked for by %j is %s ms", (headers, expected) => {
    expect(readRetryAfterMs(new Headers(headers), now)).toBe(expected);
  });

  it.each<[Record<string, string>, number | undefined]>([
    [{}, undefined],
    [{ "x-ratelimit-reset-requests": "1s" }, 1_000],
    [{ "x-ratelimit-reset-requests": "20" }, 20_000],
    [{ "x-ratelimit-reset-tokens": "6m0s" }, 360_000],
    [{ "x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "1h2m3.5s" }, 3_723_500],
    [
      {
        "x-ratelimit-reset-requests": "20ms",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-ratelimit-remaining-tokens": "5000",
      },
      20,
    ],
    [{ "x-ratelimit-reset-tokens": "6m0" }, undefined],
  ])("until the reset of %j is %s ms", (headers, expected) => {
    expect(readResetMs(new Headers(headers))).toBe(expected);
  });

  it.each<[string, number | undefined]>([
    ["Rate limit reached. Please try again in 1.5s. Visit us.", 1_500],
    ["Please try again in 6ms.", 6],
    ["Please try again in 1m26.4s.", 86_400],
    ["Please retry after 20 seconds.", 20_000],
    ["Please retry after 1 second.", 1_000],
    ["Please try again in a moment.", undefined],
    ["Please try again in 5 minutes.", undefined],
    ["Please try again later.", undefined],
    ["", undefined],
  ])("said in %j is %s ms", (message, expected) => {
    expect(readSaidDelayMs(message)).toBe(expected);
  });

  it("is a whole number between zero and a day, or unknown, whatever is said", () => {
    const values = fc.oneof(fc.double().map(String), fc.stringMatching(/^[\dhms., -]{0,20}$/));
    fc.assert(
      fc.property(values, values, (asked, reset) => {
        const headers = new Headers({ "retry-after": asked, "x-ratelimit-reset-tokens": reset });
        const found = [
          readRetryAfterMs(headers, now),
          readResetMs(headers),
          readSaidDelayMs(`Please try again in ${reset}.`),
        ];
        for (const delayMs of found.filter((each) => each !== undefined)) {
          expect(Number.isInteger(delayMs) && delayMs >= 0 && delayMs <= 86_400_000).toBe(true);
        }
      }),
    );
  });
});

describe("secrets in messages", () => {
  it.each([
    ["Incorrect API key provided: sk-proj-abc_DEF-123456.", "sk-[redacted]"],
    ["Incorrect API key provided: sk-proj-********abcd.", "sk-[redacted]"],
    ["header Authorization: Bearer abc.def.ghi was refused", "Bearer [redacted] was"],
    ["GET https://user:pass@example.com/v1 failed", "https://[redacted]@example.com/v1"],
    ["?api_key=abcdef&x=1", "?api_key=[redacted]&x=1"],
  ])("are taken out of %s", (message, expected) => {
    expect(redactSecrets(message)).toContain(expected);
  });

  it("leave ordinary words alone", () => {
    const message = "The task-based model ollama used 12 tokens: too many tokens per minute.";
    expect(redactSecrets(message, "ollama")).toBe(message);
  });
});
