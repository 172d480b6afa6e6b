import type { Failure } from "./failures.ts";

const baseDelayMs = 500;
const maxDelayMs = 30_000;
/** What a provider may ask for at most; a longer wait is cut, the next attempt asks again. */
const maxServerDelayMs = 10 * 60_000;

/**
 * How long to wait before the next attempt, in milliseconds: what the provider asked for, else
 * exponential with full jitter in its upper half. Temporal keeps the delay, not the worker.
 *
 * @param random in [0, 1).
 */
export function retryDelayMs(failure: Failure, attempt: number, random = Math.random()): number {
  if (failure.retryAfterMs !== undefined) return Math.min(failure.retryAfterMs, maxServerDelayMs);
  const ceiling = Math.min(maxDelayMs, baseDelayMs * 2 ** (attempt - 1));
  return Math.round(ceiling / 2 + (ceiling / 2) * random);
}
