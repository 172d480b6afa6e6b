import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";

const retryEveryMs = 1_000;
const sayEveryMs = 10_000;

/**
 * Repeats `connect` until it succeeds: what a process needs may start after it. Says what it waits
 * for at once and then every ten seconds.
 *
 * @throws the signal's reason when it aborts.
 */
export async function waitFor<Result>(
  what: string,
  connect: () => Promise<Result>,
  log: Logger,
  signal: AbortSignal,
): Promise<Result> {
  let saidAt = Number.NEGATIVE_INFINITY;
  for (;;) {
    signal.throwIfAborted();
    try {
      return await connect();
    } catch (error) {
      const now = performance.now();
      if (now - saidAt >= sayEveryMs) {
        saidAt = now;
        const reason = error instanceof Error ? error.message : String(error);
        log.warn({ reason }, `waiting for ${what}`);
      }
      await delay(retryEveryMs, undefined, { signal });
    }
  }
}
