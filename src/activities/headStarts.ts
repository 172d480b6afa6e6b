import { ApplicationFailure } from "@temporalio/activity";
import { LRUCache } from "lru-cache";
import {
  abandonHeadStart,
  adoptHeadStart,
  headStartRunId,
  markHeadStartsAlive,
} from "../store/headStarts.ts";
import { claimStep } from "../store/claims.ts";
import type { Fence } from "../store/fence.ts";
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
  verdict: Promise<StepVerdict>;
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
  /** Those that have ended, for the attempts that come to join them. */
  readonly #outcomes = new LRUCache<string, HeadStart>({ max: maxOutcomes, ttl: keepOutcomeMs });
  #timer: NodeJS.Timeout | null = null;
  #isClosing = false;

  /** @param maxRunning above it turns start by Temporal alone, whose slots bound the work. */
  constructor(parts: Parts, maxRunning: number) {
    this.#parts = parts;
    this.#maxRunning = maxRunning;
  }

  /**
   * Begins the first step of a turn that was just admitted, unless there is too much to do.
   *
   * @param started settles when Temporal knows the turn. Until then the turn counts as running here,
   *   so that a process cannot run far ahead of its Temporal.
   */
  begin(turn: Turn, started: Promise<void>): void {
    if (this.#isClosing || this.#running.size >= this.#maxRunning) return;
    const fence = { turnId: turn.id, step: 1, runId: headStartRunId(), attempt: 1 };
    const takenBack = new AbortController();
    const verdict = this.#run(fence, takenBack.signal);
    const headStart = { fence, takenBack, verdict };
    this.#running.set(turn.id, headStart);
    const ended = verdict.then(
      () => this.#outcomes.set(turn.id, headStart),
      (error: unknown) => this.#fail(headStart, error),
    );
    void Promise.all([ended, started]).finally(() => this.#running.delete(turn.id));
    this.#timer ??= setInterval(() => this.#markAlive(), markAliveEveryMs);
  }

  /**
   * Joins the head start of the attempt's turn, so that the step runs once; `null` where none runs
   * here. When `cancellationSignal` aborts, the head start ends as the attempt would have to.
   */
  async join(fence: Fence, cancellationSignal: AbortSignal): Promise<StepVerdict | null> {
    if (fence.step !== 1) return null;
    const isRunning = this.#running.has(fence.turnId);
    const headStart = this.#running.get(fence.turnId) ?? this.#outcomes.get(fence.turnId);
    if (headStart === undefined) return null;
    const takeBack = () => headStart.takenBack.abort();
    cancellationSignal.addEventListener("abort", takeBack);
    if (cancellationSignal.aborted) takeBack();
    try {
      if (isRunning) await adoptHeadStart(this.#parts.database, headStart.fence, fence.runId);
      return await headStart.verdict;
    } finally {
      // Whatever has come of it, a later attempt starts from the record.
      this.#outcomes.delete(fence.turnId);
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
    if (this.#timer !== null) clearInterval(this.#timer);
  }

  async #run(fence: Fence, takenBack: AbortSignal): Promise<StepVerdict> {
    const { database, currentRun } = this.#parts;
    const claim = { fence, token: crypto.randomUUID(), kind: "model" } as const;
    const claimed = await claimStep(database, claim, currentRun);
    if (claimed.outcome === "recorded") return claimed.verdict;
    if (claimed.outcome !== "claimed") throw new Error("The workflow was faster.");
    return runModelStep(this.#parts, fence, claimed, takenBack);
  }

  #fail(headStart: HeadStart, cause: unknown): void {
    const { fence } = headStart;
    const { database, log } = this.#parts;
    log.info({ turn: fence.turnId, reason: String(cause) }, "a head start ended without its step");
    // The activity's next attempt need not wait until the owner looks dead.
    abandonHeadStart(database, fence).catch(() => {});
    // The attempt that comes to join still has to hear how long the provider asks to wait.
    if (cause instanceof ApplicationFailure) this.#outcomes.set(fence.turnId, headStart);
  }

  #markAlive(): void {
    if (this.#running.size === 0) return;
    const turnIds = [...this.#running.keys()];
    markHeadStartsAlive(this.#parts.database, turnIds).catch(() => {});
  }
}
