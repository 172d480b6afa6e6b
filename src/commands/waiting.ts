import { setTimeout as delay } from "node:timers/promises";

const retryEveryMs = 1_000;
const sayEveryMs = 10_000;

/** The process was told to end before it had what it needs: as good an end as any later one. */
export class Stopped extends Error {
  override name = "Stopped";
}

/**
 * Repeats `connect` until it succeeds: what a process needs may start after it. What `connect` still
 * does at an abort is not waited for.
 *
 * @param onWaiting told why it waits, at once and then every ten seconds.
 * @throws the signal's reason when it aborts.
 */
export async function waitFor<Result>(
  connect: () => Promise<Result>,
  onWaiting: (reason: string) => void,
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
        onWaiting(error instanceof Error ? error.message : String(error));
      }
      await Promise.race([delay(retryEveryMs), aborted]);
    }
  }
}
