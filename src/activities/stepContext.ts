import { setTimeout as delay } from "node:timers/promises";
import { ApplicationFailure, Context } from "@temporalio/activity";
import { claimStep } from "../store/claims.ts";
import type { Claim, StepToClaim } from "../store/claims.ts";
import type { Fence } from "../store/fence.ts";
import { readHeadStart } from "../store/headStarts.ts";
import { retryDelayMs } from "../turn/backoff.ts";
import type { Failure } from "../turn/failures.ts";
import { maxTimerMs } from "../turn/limits.ts";
import type { Turn } from "../turn/turn.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { StepStopped } from "./runningTurns.ts";

/** Temporal throttles these; see `maxHeartbeatThrottleIntervalMs` of the worker. */
const heartbeatEveryMs = 2_000;

const maxTryElsewhereMs = 30_000;

/** How often an attempt looks whether another process's head start has ended. */
const headStartLookMs = 1_000;

/** The fence of the step that this activity attempt works on [3]. */
export function currentFence(step: number): Fence {
  const { workflowExecution, attempt } = Context.current().info;
  if (workflowExecution === undefined) throw new Error("A step runs inside a workflow only.");
  return { turnId: workflowExecution.workflowId, step, runId: workflowExecution.runId, attempt };
}

/**
 * Claims a step for this attempt. While the database is away the claim is sent again under the same
 * token, so that one whose answer was lost does not look like an attempt that began and died [8].
 *
 * @throws a failure for good when the turn is not on record: then no later try will find it.
 */
export async function claimForAttempt(
  parts: Parts,
  fence: Fence,
  kind: StepToClaim["kind"],
): Promise<Exclude<Claim, { outcome: "unknown_turn" | "head_started" }>> {
  const claim = { fence, kind, token: crypto.randomUUID() };
  const { cancellationSignal } = Context.current();
  for (;;) {
    const claimed = await persist(
      () => claimStep(parts.database, claim, parts.currentRun),
      cancellationSignal,
    );
    if (claimed.outcome === "unknown_turn") throw failForGood("unknown_turn");
    if (claimed.outcome !== "head_started") return claimed;
    await headStartEnd(parts, fence.turnId, cancellationSignal);
  }
}

/**
 * Waits while another process is at the turn's first step, without touching its rows. Where that one
 * has failed and waits itself, Temporal keeps the delay.
 */
async function headStartEnd(parts: Parts, turnId: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    const found = await persist(() => readHeadStart(parts.database, turnId), signal);
    if (found === null) return;
    if (found.retryInMs > 0) throw retryLater("head_start_failed", found.retryInMs);
    await delay(headStartLookMs, undefined, { signal }).catch(() => {
      throw retryLater("handover");
    });
  }
}

/** Stops a step at its turn's deadline, or before it, and when Temporal takes the attempt back. */
export function linkStops(
  stop: AbortController,
  turn: Turn,
  cancellationSignal: AbortSignal,
  until = turn.deadlineAt,
): () => void {
  const leftMs = until.getTime() - Date.now();
  const expire = () => stop.abort(new StepStopped("deadline"));
  const handOver = () => stop.abort(new StepStopped("handover"));
  if (turn.cancelRequestedAt !== null) stop.abort(new StepStopped("cancel_requested"));
  if (leftMs <= 0) expire();
  if (cancellationSignal.aborted) handOver();
  const timer = setTimeout(expire, Math.min(Math.max(0, leftMs), maxTimerMs));
  cancellationSignal.addEventListener("abort", handOver);
  return () => {
    clearTimeout(timer);
    cancellationSignal.removeEventListener("abort", handOver);
  };
}

/** Tells Temporal that this attempt lives, until the returned function is called. */
export function keepHeartbeating(): () => void {
  const context = Context.current();
  const timer = setInterval(() => context.heartbeat(), heartbeatEveryMs);
  return () => clearInterval(timer);
}

/** Fails the attempt so that Temporal tries again; history keeps the class alone [5]. */
export function retryLater(failureClass: string, delayMs?: number): ApplicationFailure {
  const retry = ApplicationFailure.create({
    message: failureClass,
    type: failureClass,
    // Temporal (server 1.29) takes a delay of 0 for "do not retry".
    ...(delayMs === undefined ? {} : { nextRetryDelay: Math.max(1, delayMs) }),
  });
  retry.stack = "";
  return retry;
}

/**
 * Leaves the attempt to a worker that has the tool: while a new version is rolled out, workers with
 * and without it run side by side.
 */
export function tryElsewhere(
  parts: Parts,
  turn: Turn,
  tool: string,
  attempt: number,
): ApplicationFailure {
  parts.log.warn({ turn: turn.id, agent: turn.agent, tool }, "this worker does not have the tool");
  // Growing, so that the turn's deadline comes before Temporal's last attempt.
  const tryAgainMs = Math.min(attempt * 1_000, maxTryElsewhereMs);
  return retryBeforeDeadline("tool_missing", tryAgainMs, turn);
}

/** Fails the attempt after which no other one may follow. */
export function failForGood(failureClass: string): ApplicationFailure {
  const failed = ApplicationFailure.nonRetryable(failureClass, failureClass);
  failed.stack = "";
  return failed;
}

/** Tries again after `failures` failed calls of the step; not later than at the turn's deadline. */
export function retryAfterFailure(
  failure: Failure,
  failures: number,
  turn: Turn,
): ApplicationFailure {
  return retryBeforeDeadline(failure.class, retryDelayMs(failure, failures), turn);
}

/** Tries again after `delayMs`, not later than at the turn's deadline. */
export function retryBeforeDeadline(
  failureClass: string,
  delayMs: number,
  turn: Turn,
): ApplicationFailure {
  const leftMs = Math.max(0, turn.deadlineAt.getTime() - Date.now());
  return retryLater(failureClass, Math.min(leftMs, delayMs));
}
