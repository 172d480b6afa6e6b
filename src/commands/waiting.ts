import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";

const retryEveryMs = 1_000;
const sayEveryMs = 10_000;

/** The process was told to end before it had what it needs: as good an end as any later one. */
export class Stopped extends Error {
  override name = "Stopped";
}

/**
 * Repeats `connect` until it succeeds: what a process needs may start after it. Says what it waits
 * for at once and then every ten seconds. What `connect` still does at an abort is not waited for.
 *
 * @throws the signal's reason when it aborts.
 */
export async function waitFor<Result>(
  what: string,
  connect: () => Promise<Result>,
  log: Logger,
  signal: AbortSignal,
): Promise<Result> {
  const aborted = new Promise<never>((_resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
  });
  aborted.catch(() => {});
  let saidAt = Number.NEGATIVE_INFINITY;
  for (;;) {
    signal.throwIfAborted();
    try {
      return await Promise.race([connect(), aborted]);
    } catch (error) {
      signal.throwIfAborted();
      const now = performance.now();
      if (now - saidAt >= sayEveryMs) {
        saidAt = now;
        const reason = error instanceof Error ? error.message : String(error);
        log.warn({ reason }, `waiting for ${what}`);
      }
      await Promise.race([delay(retryEveryMs), aborted]);
    }
  }
}
