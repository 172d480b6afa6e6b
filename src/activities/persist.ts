import { setTimeout as delay } from "node:timers/promises";
import { StoreUnavailable } from "../store/database.ts";

const retryEveryMs = 250;

/**
 * Repeats a transaction while the database is away, until `signal` aborts. For transactions that
 * may be sent again because they recognise that they were stored.
 *
 * @throws StoreUnavailable when `signal` aborts first.
 */
export async function persist<Result>(
  work: () => Promise<Result>,
  signal: AbortSignal,
): Promise<Result> {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof StoreUnavailable) || signal.aborted) throw error;
      await delay(retryEveryMs, undefined, { signal }).catch(() => {});
    }
  }
}
