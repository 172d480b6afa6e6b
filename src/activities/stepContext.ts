import { ApplicationFailure, Context } from "@temporalio/activity";
import type { Fence } from "../store/steps.ts";
import { retryDelayMs } from "../turn/backoff.ts";
import type { Failure } from "../turn/failures.ts";

/** Temporal throttles these; see `maxHeartbeatThrottleIntervalMs` of the worker. */
const heartbeatEveryMs = 1_000;

/** The fence of the step that this activity attempt works on [3]. */
export function currentFence(step: number): Fence {
  const { workflowExecution, attempt } = Context.current().info;
  if (workflowExecution === undefined) throw new Error("A step runs inside a workflow only.");
  return { turnId: workflowExecution.workflowId, step, runId: workflowExecution.runId, attempt };
}

/** Temporal's attempt as a random claim token: the same for every send of one claim. */
export function claimToken(fence: Fence): string {
  return `${fence.runId}/${fence.attempt}/${crypto.randomUUID()}`;
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
    ...(delayMs === undefined ? {} : { nextRetryDelay: delayMs }),
  });
  retry.stack = "";
  return retry;
}

export function retryAfterFailure(failure: Failure, attempt: number): ApplicationFailure {
  return retryLater(failure.class, retryDelayMs(failure, attempt));
}
