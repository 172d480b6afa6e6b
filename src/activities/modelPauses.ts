import { LRUCache } from "lru-cache";
import { retryDelayMs } from "../turn/backoff.ts";
import { failure } from "../turn/failures.ts";

/** After a longer wait the next call finds out whether the limit still holds. */
const maxPauseMs = 60_000;
const maxModels = 1_000;
/** Later attempts are sent in a pause too, so that their failures count and the turn ends [13]. */
const maxHeldAttempts = 50;

/**
 * Thrown instead of sending a call whose model is paused; `delayMs` is when to try again. It is
 * Temporal that waits and tries again [11].
 */
export class ModelPaused extends Error {
  readonly delayMs: number;

  constructor(delayMs: number) {
    super(`The model is paused; the call is tried again in ${delayMs} ms.`);
    this.name = "ModelPaused";
    this.delayMs = delayMs;
  }
}

/**
 * The models that the provider limits at the moment, as the calls of this process have heard: what
 * one of them was told holds for the others.
 */
export class ModelPauses {
  readonly #paused = new LRUCache<string, true>({ max: maxModels });

  /** Holds back the calls of a model for so long, at most a minute. */
  pause(model: string, delayMs: number): void {
    const pauseMs = Math.ceil(Math.min(delayMs, maxPauseMs));
    if (pauseMs > this.leftMs(model)) this.#paused.set(model, true, { ttl: pauseMs });
  }

  /**
   * Holds a call back while its model is paused. The delay is the rest of the pause and a backoff
   * that grows with the attempts, so that those who wait do not come all at once.
   *
   * @throws ModelPaused
   */
  check(model: string, attempt: number): void {
    const leftMs = this.leftMs(model);
    if (leftMs === 0 || attempt > maxHeldAttempts) return;
    throw new ModelPaused(Math.ceil(leftMs) + retryDelayMs(failure("rate_limited"), attempt));
  }

  /** The rest of the model's pause; 0 where there is none. */
  leftMs(model: string): number {
    return Math.max(0, this.#paused.getRemainingTTL(model));
  }
}
