/** A provider that asks for more than this means "not today"; the turn's deadline is nearer. */
const maxRetryAfterMs = 24 * 60 * 60_000;

const unitMs: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `1s`, `6m0s`, `20ms`, `1h2m3.5s` as OpenAI's rate limit headers have it; a bare number is seconds. */
function parseDurationMs(text: string): number | undefined {
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1_000;
  if (!/^(\d+(\.\d+)?(ms|s|m|h|d))+$/.test(text)) return undefined;
  const parts = text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g);
  return [...parts].reduce((sum, [, count, unit]) => sum + Number(count) * unitMs[unit ?? ""]!, 0);
}

/** `retry-after` of RFC 9110, section 10.2.3: seconds or an HTTP date. */
function parseRetryAfterMs(text: string, now: Date): number | undefined {
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1_000;
  const date = Date.parse(text);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now.getTime());
}

function atMost(delayMs: number | undefined): number | undefined {
  return delayMs === undefined ? undefined : Math.min(Math.ceil(delayMs), maxRetryAfterMs);
}

/** A header, under its own name, that of Azure, or that which LiteLLM gives its provider's. */
function headerOf(headers: Headers, name: string): string {
  const azure = name.replace("x-ratelimit-", "x-rate-limit-");
  const value =
    headers.get(name) ?? headers.get(azure) ?? headers.get(`llm_provider-${name}`) ?? "";
  return value.trim();
}

/** `retry-after-ms`, else `retry-after`, in whole milliseconds, at most a day; else undefined. */
export function readRetryAfterMs(headers: Headers, now: Date): number | undefined {
  const inMs = headerOf(headers, "retry-after-ms");
  return atMost(
    // Azure says 0 there beside a `retry-after` of a second.
    (/^\d+(\.\d+)?$/.test(inMs) && Number(inMs) > 0 ? Number(inMs) : undefined) ??
      parseRetryAfterMs(headerOf(headers, "retry-after"), now),
  );
}

/**
 * When the limits reset that are used up, by `x-ratelimit-reset-requests` and `-tokens`; where the
 * headers do not say which, the later one. Whole milliseconds, at most a day.
 */
export function readResetMs(headers: Headers): number | undefined {
  const limits = ["requests", "tokens"].map((kind) => ({
    isUsedUp: headerOf(headers, `x-ratelimit-remaining-${kind}`) === "0",
    resetMs: parseDurationMs(headerOf(headers, `x-ratelimit-reset-${kind}`)),
  }));
  const usedUp = limits.filter((limit) => limit.isUsedUp);
  const delays = (usedUp.length > 0 ? usedUp : limits)
    .map((limit) => limit.resetMs)
    .filter((delay) => delay !== undefined);
  return delays.length > 0 ? atMost(Math.max(...delays)) : undefined;
}

/**
 * `try again in 1.5s` of OpenAI and `retry after 20 seconds` of Azure: all that there is where the
 * limit is met inside a stream. Whole milliseconds, at most a day.
 */
export function readSaidDelayMs(message: string): number | undefined {
  const [, said, seconds] =
    /\b(?:try again in|retry after) (?:((?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+)\b|(\d+(?:\.\d+)?) seconds?\b)/i.exec(
      message,
    ) ?? [];
  return atMost(parseDurationMs(said ?? seconds ?? ""));
}
