import type { CurrentRun } from "../store/claims.ts";
import { heartbeatTimeoutMs } from "../turn/engineNames.ts";

const askEveryMs = 1_000;

/**
 * About when Temporal gives the step to another worker, so that a tool does not run at two places [8] for
 * longer than it takes to look again; a shorter time would stop tools for every hiccup of Temporal.
 */
const lostAfterMs = heartbeatTimeoutMs - askEveryMs;

/** gRPC's CANCELLED, DEADLINE_EXCEEDED and UNAVAILABLE: nobody has answered. */
const unansweredCodes: ReadonlySet<unknown> = new Set([1, 4, 14]);

/** A Temporal that refuses to say, because of a limit or a permission, has been reached all the same. */
function isAnswer(error: unknown): boolean {
  const { cause } = error as { cause?: { code?: unknown } };
  return typeof cause?.code === "number" && !unansweredCodes.has(cause.code);
}

/**
 * Tells the steps of this worker that their heartbeats do not arrive any more. The SDK does so only
 * seconds after another worker has the step, and never where each try is refused at once
 * (`local_timeouts_task` of its core, 1.24).
 */
export class TemporalWatch {
  readonly #currentRun: CurrentRun;
  readonly #watching = new Map<AbortController, string>();
  #reachedAt = 0;
  #timer: NodeJS.Timeout | null = null;

  constructor(currentRun: CurrentRun) {
    this.#currentRun = currentRun;
  }

  /** A signal that aborts when this worker has lost Temporal; `release` it when the step ends. */
  watch(turnId: string): { signal: AbortSignal; release: () => void } {
    const lost = new AbortController();
    this.#watching.set(lost, turnId);
    if (this.#timer === null) {
      // The step has just come from Temporal.
      this.#reachedAt = performance.now();
      this.#timer = setInterval(() => this.#look(), askEveryMs);
    }
    return { signal: lost.signal, release: () => this.#forget(lost) };
  }

  #look(): void {
    const now = performance.now();
    if (now - this.#reachedAt > lostAfterMs) {
      for (const lost of this.#watching.keys()) {
        lost.abort();
        this.#forget(lost);
      }
      return;
    }
    const [turnId = ""] = this.#watching.values();
    const noteReached = () => (this.#reachedAt = Math.max(this.#reachedAt, now));
    this.#currentRun(turnId).then(noteReached, (error: unknown) => {
      if (isAnswer(error)) noteReached();
    });
  }

  #forget(lost: AbortController): void {
    this.#watching.delete(lost);
    if (this.#watching.size > 0 || this.#timer === null) return;
    clearInterval(this.#timer);
    this.#timer = null;
  }
}
