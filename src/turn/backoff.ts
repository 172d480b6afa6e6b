import type { Failure } from "./failures.ts";

const baseDelayMs = 500;
const maxDelayMs = 30_000;
/** What a provider may ask for at most; a longer wait is cut, the next attempt asks again. */
const maxServerDelayMs = 10 * 60_000;
/** Calls that were told the same delay come back spread over so much of it. */
const serverDelaySpread = 0.1;

/**
 * How long to wait before the next attempt, in milliseconds: exponential, the upper half of it
 * jitter, and never shorter than the provider asked for. Temporal keeps the delay, not the worker.
 *
 * @param random in [0, 1).
 */
export function retryDelayMs(failure: Failure, attempt: number, random = Math.random()): number {
  const ceiling = Math.min(maxDelayMs, baseDelayMs * 2 ** (attempt - 1));
  const backoff = ceiling / 2 + (ceiling / 2) * random;
  const asked = Math.min(failure.retryAfterMs ?? 0, maxServerDelayMs);
  return Math.round(Math.max(backoff, asked * (1 + serverDelaySpread * random)));
}
