import type { TokenCounts } from "../turn/turn.ts";

function fieldOf(value: unknown, field: string): unknown {
  return typeof value === "object" && value !== null
    ? (value as Record<string, unknown>)[field]
    : undefined;
}

function countOf(value: unknown, field: string): number {
  const count = fieldOf(value, field);
  return Number.isSafeInteger(count) && (count as number) >= 0 ? (count as number) : 0;
}

/**
 * Reads `response.usage`. Parts that a server leaves out count as 0.
 *
 * @returns null when no usage was sent: then nobody knows the figures, which is not 0.
 */
export function readUsage(usage: unknown): TokenCounts | null {
  if (typeof usage !== "object" || usage === null) return null;
  const inputDetails = fieldOf(usage, "input_tokens_details");
  return {
    inputTokens: countOf(usage, "input_tokens"),
    cachedTokens: countOf(inputDetails, "cached_tokens"),
    cacheWriteTokens: countOf(inputDetails, "cache_write_tokens"),
    outputTokens: countOf(usage, "output_tokens"),
    reasoningTokens: countOf(fieldOf(usage, "output_tokens_details"), "reasoning_tokens"),
  };
}

/**
 * The same of a response that has ended. One that was not refused has cost something, so that zeros are
 * as good as nothing; OpenAI's `response.incomplete` was seen with them.
 */
export function readFinalUsage(event: string, usage: unknown): TokenCounts | null {
  const tokens = readUsage(usage);
  const isNothing = tokens !== null && tokens.inputTokens + tokens.outputTokens === 0;
  return isNothing && event !== "response.failed" ? null : tokens;
}
