import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { ModelEndpoint } from "../responses/call.ts";
import { readUsage } from "../responses/usage.ts";
import type { Database } from "../store/database.ts";
import { noteCancelledCost } from "../store/keptResponses.ts";
import { failureRules, StepFailure } from "../turn/failures.ts";
import { priceOf } from "../turn/prices.ts";

const cancelTimeoutMs = 10_000;
const retryDelaysMs = [1_000, 5_000];

/**
 * Cancels responses that nobody will go on with, behind the turn's back: the turn does not wait for
 * it, and a failure costs what is left of the response.
 */
export class ResponseCanceller {
  readonly #database: Database;
  readonly #endpoint: ModelEndpoint;
  readonly #log: Logger;
  readonly #pending = new Set<Promise<void>>();
  readonly #closing = new AbortController();

  constructor(database: Database, endpoint: ModelEndpoint, log: Logger) {
    this.#database = database;
    this.#endpoint = endpoint;
    this.#log = log;
  }

  cancel(turnId: string, responseId: string): void {
    const cancelled = this.#cancel(turnId, responseId)
      .catch((error: unknown) => {
        const reason = { turn: turnId, error: String(error) };
        this.#log.warn(reason, "a kept response was not cancelled");
      })
      .finally(() => this.#pending.delete(cancelled));
    this.#pending.add(cancelled);
  }

  /** Resolves when what is under way has been answered; what has failed is not tried again. */
  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.all(this.#pending);
  }

  async #cancel(turnId: string, responseId: string): Promise<void> {
    const response = await this.#ask(responseId);
    const tokens = readUsage(response?.["usage"]);
    if (tokens === null) return;
    const cost = priceOf(String(response?.["model"]), tokens);
    await noteCancelledCost(this.#database, { turnId, responseId }, tokens, cost);
  }

  async #ask(responseId: string) {
    const { signal } = this.#closing;
    const once = () => this.#endpoint.cancel(responseId, AbortSignal.timeout(cancelTimeoutMs));
    for (const retryDelayMs of retryDelaysMs) {
      try {
        return await once();
      } catch (error) {
        const isFinal =
          error instanceof StepFailure && failureRules[error.failure.class].action !== "retry";
        if (isFinal || signal.aborted) throw error;
        await delay(retryDelayMs, undefined, { signal });
      }
    }
    return once();
  }
}
