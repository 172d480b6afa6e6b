import type { TokenCounts } from "./turn.ts";

/**
 * Bytes of UTF-8 that make a token, on the average of many languages; see
 * docs/decisions/0011-estimated-tokens.md.
 */
const bytesPerToken = 4;

/** What a model does not read as text. */
const unreadFields = new Set(["id", "call_id", "type", "status", "encrypted_content"]);

function textBytes(value: unknown): number {
  if (typeof value === "string") return value.startsWith("data:") ? 0 : Buffer.byteLength(value);
  if (typeof value !== "object" || value === null) return 0;
  let bytes = 0;
  for (const [field, inner] of Object.entries(value)) {
    if (!unreadFields.has(field)) bytes += textBytes(inner);
  }
  return bytes;
}

/** About how many tokens the texts in these values are; images and files are not counted. */
export function estimateTokens(...values: readonly unknown[]): number {
  const bytes = values.reduce<number>((sum, value) => sum + textBytes(value), 0);
  return Math.ceil(bytes / bytesPerToken);
}

/** About what a call has cost that wrote these output items, as if none of its input was cached. */
export function estimateUsage(
  inputTokens: number,
  written: readonly Record<string, unknown>[],
): TokenCounts {
  // What a hosted tool gave back was not written by the model.
  const notWritten = { role: null, output: null, error: null };
  const said = written.map(({ type, ...item }) => ({ type, ...item, ...notWritten }));
  return {
    inputTokens,
    cachedTokens: 0,
    cacheWriteTokens: 0,
    outputTokens: estimateTokens(said),
    reasoningTokens: estimateTokens(said.filter((item) => item.type === "reasoning")),
  };
}
