import type { Logger } from "pino";
import type { ModelEndpoint } from "../responses/call.ts";
import { readUsage } from "../responses/usage.ts";
import type { Database } from "../store/database.ts";
import { noteCancelledCost } from "../store/keptResponses.ts";
import { priceOf } from "../turn/prices.ts";
import type { Parts } from "./parts.ts";

const cancelTimeoutMs = 10_000;

/**
 * Cancels responses that nobody will go on with, behind the turn's back: the turn does not wait for
 * it, and a failure costs what is left of the response.
 */
export function createResponseCanceller(
  database: Database,
  endpoint: ModelEndpoint,
  log: Logger,
): Parts["cancelResponse"] {
  async function cancel(turnId: string, responseId: string): Promise<void> {
    const response = await endpoint.cancel(responseId, AbortSignal.timeout(cancelTimeoutMs));
    const tokens = readUsage(response?.["usage"]);
    if (tokens === null) return;
    const cost = priceOf(String(response?.["model"]), tokens);
    await noteCancelledCost(database, { turnId, responseId }, tokens, cost);
  }
  return (turnId, responseId) => {
    cancel(turnId, responseId).catch((error: unknown) => {
      log.warn({ turn: turnId, error: String(error) }, "a kept response was not cancelled");
    });
  };
}
