import { ApplicationFailure } from "@temporalio/activity";
import { LRUCache } from "lru-cache";
import {
  abandonHeadStart,
  adoptHeadStart,
  headStartRunId,
  markHeadStartsAlive,
  postponeHeadStart,
} from "../store/headStarts.ts";
import { claimStep } from "../store/claims.ts";
import type { Fence } from "../store/fence.ts";
import { repeatEvery } from "../store/repeat.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict } from "../turn/verdict.ts";
import { runModelStep } from "./modelStep.ts";
import type { Parts } from "./parts.ts";

/** The attempt that joins a head start comes well within this time, or to another worker. */
const keepOutcomeMs = 15_000;
const maxOutcomes = 10_000;

/** Other workers leave a head start alone while its owner has been seen within `headStartStaleMs`. */
const markAliveEveryMs = 1_000;

interface HeadStart {
  fence: Fence;
  /** Aborts when the step has to be left to an attempt of the workflow's activity. */
  takenBack: AbortController;
  /** `null`: the workflow's activity was faster. */
  verdict: Promise<StepVerdict | null>;
}

/**
 * Where the process that admits a turn is a worker too, it claims the first step and opens the
 * model's stream at once, while Temporal is being told. The workflow's activity then joins the step
 * that is running here, or takes it over where the owner has died.
 */
export class HeadStarts {
  readonly #parts: Parts;
  readonly #maxRunning: number;
  readonly #running = new Map<string, HeadStart>();
  /** Those that have finished their step, for the attempts that come to join them. */
  readonly #finished = new LRUCache<string, HeadStart>({ max: maxOutcomes, ttl: keepOutcomeMs });
  /** Those whose step is to be tried again, until the provider's delay is over or handed on. */
  readonly #failed = new Map<string, HeadStart>();
  #stopMarking: (() => void) | null = null;
  #isClosing = false;

  /** @param maxRunning above it turns start by Temporal alone, whose slots bound the work. */
  constructor(parts: Parts, maxRunning: number) {
    this.#parts = parts;
    this.#maxRunning = maxRunning;
  }

  get hasRoom(): boolean {
    return !this.#isClosing && this.#running.size < this.#maxRunning;
  }

  /**
   * Begins the first step of a turn that was just admitted, unless there is too much to do.
   *
   * @param tell has Temporal told of the turn. Until then the turn counts as running here, so that a
   *   process cannot run far ahead of its Temporal.
   * @returns whether it began; `tell` was not called if not.
   */
  begin(turn: Turn, tell: () => Promise<void>): boolean {
    if (!this.hasRoom || this.#running.has(turn.id)) return false;
    const fence = { turnId: turn.id, step: 1, runId: headStartRunId(), attempt: 1 };
    const takenBack = new AbortController();
    const verdict = this.#run(fence, takenBack.signal);
    const headStart = { fence, takenBack, verdict };
    this.#running.set(turn.id, headStart);
    const ended = verdict.then(
      (outcome) => outcome !== null && this.#finished.set(turn.id, headStart),
      (error: unknown) => this.#fail(headStart, error),
    );
    void Promise.all([ended, tell()]).finally(() => this.#running.delete(turn.id));
    this.#stopMarking ??= repeatEvery(markAliveEveryMs, () => this.#markAlive());
    return true;
  }

  /**
   * Joins the head start of the attempt's turn, so that the step runs once; `null` where none has
   * its step here. When `cancellationSignal` aborts, the head start ends as the attempt would have to.
   */
  async join(fence: Fence, cancellationSignal: AbortSignal): Promise<StepVerdict | null> {
    if (fence.step !== 1) return null;
    const { turnId } = fence;
    const finished = this.#finished.get(turnId);
    const headStart = finished ?? this.#failed.get(turnId) ?? this.#running.get(turnId);
    if (headStart === undefined) return null;
    const takeBack = () => headStart.takenBack.abort();
    cancellationSignal.addEventListener("abort", takeBack);
    if (cancellationSignal.aborted) takeBack();
    try {
      const hasEnded = finished !== undefined && (await finished.verdict)?.next === "end";
      if (!hasEnded) await adoptHeadStart(this.#parts.database, headStart.fence, fence.runId);
      // An attempt exists, so Temporal knows the turn, whatever the telling of it has come to.
      return await headStart.verdict.finally(() => this.#running.delete(turnId));
    } finally {
      // Whatever has come of it, a later attempt starts from the record; the delay is Temporal's now.
      this.#finished.delete(turnId);
      if (this.#failed.delete(turnId)) this.#abandon(headStart);
    }
  }

  /** Lets what runs end, for `graceMs`; the rest is handed over to the workflow's activity. */
  async close(graceMs: number): Promise<void> {
    this.#isClosing = true;
    const running = [...this.#running.values()];
    const takeBack = () => running.forEach((each) => each.takenBack.abort());
    const timer = setTimeout(takeBack, graceMs);
    await Promise.allSettled(running.map((each) => each.verdict));
    clearTimeout(timer);
    this.#stopMarking?.();
    for (const headStart of this.#failed.values()) this.#abandon(headStart);
  }

  async #run(fence: Fence, takenBack: AbortSignal): Promise<StepVerdict | null> {
    const { database, currentRun } = this.#parts;
    const claim = { fence, token: crypto.randomUUID(), kind: "model" } as const;
    const claimed = await claimStep(database, claim, currentRun);
    if (claimed.outcome === "recorded") return claimed.verdict;
    if (claimed.outcome !== "claimed") return null;
    return runModelStep(this.#parts, fence, claimed, takenBack);
  }

  /**
   * The step is given up for the workflow's activity: where it comes to this process it hears the
   * failure and its delay, elsewhere it waits while this process keeps the step alive.
   */
  #fail(headStart: HeadStart, cause: unknown): void {
    const { turnId } = headStart.fence;
    this.#parts.log.info({ turn: turnId, reason: String(cause) }, "a head start ended too early");
    const delayMs = cause instanceof ApplicationFailure ? Number(cause.nextRetryDelay ?? 0) : 0;
    this.#failed.set(turnId, headStart);
    const giveUp = (): void => {
      if (this.#failed.delete(turnId)) this.#abandon(headStart);
    };
    if (this.#isClosing) return giveUp();
    setTimeout(giveUp, delayMs).unref();
    // So that an attempt that came to another process does not wait for it there.
    postponeHeadStart(this.#parts.database, headStart.fence, delayMs).catch(() => {});
  }

  #abandon({ fence }: HeadStart): void {
    // If this does not come through, the step is taken over once its owner looks dead.
    abandonHeadStart(this.#parts.database, fence).catch(() => {});
  }

  async #markAlive(): Promise<void> {
    const turnIds = [...this.#running.keys(), ...this.#failed.keys()];
    if (turnIds.length > 0) await markHeadStartsAlive(this.#parts.database, turnIds);
  }
}
