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
 * @returns null when no usage was sent, or one of zeros, as OpenAI's `response.incomplete` was seen to
 *   carry: then nobody knows the figures, which are not 0.
 */
export function readUsage(usage: unknown): TokenCounts | null {
  if (countOf(usage, "input_tokens") + countOf(usage, "output_tokens") === 0) return null;
  const inputDetails = fieldOf(usage, "input_tokens_details");
  return {
    inputTokens: countOf(usage, "input_tokens"),
    cachedTokens: countOf(inputDetails, "cached_tokens"),
    cacheWriteTokens: countOf(inputDetails, "cache_write_tokens"),
    outputTokens: countOf(usage, "output_tokens"),
    reasoningTokens: countOf(fieldOf(usage, "output_tokens_details"), "reasoning_tokens"),
  };
}
