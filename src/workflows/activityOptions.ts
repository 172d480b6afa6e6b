import { proxyActivities } from "@temporalio/workflow";
import type { TurnActivities } from "../activities/index.ts";
import { heartbeatTimeoutMs } from "../turn/engineNames.ts";

/**
 * A step decides by its failure's class how often and when it is tried again, within the limits
 * that the turn was admitted with [11] [13]; these bounds are for what a step cannot decide, such as
 * a worker that dies each time.
 */
const maxAttempts = 100;
const maxStepMs = 24 * 60 * 60_000;

const retry = {
  initialInterval: 100,
  backoffCoefficient: 2,
  maximumInterval: 15_000,
  maximumAttempts: maxAttempts,
};

const steps = proxyActivities<Pick<TurnActivities, "callModel" | "runTool">>({
  startToCloseTimeout: maxStepMs,
  heartbeatTimeout: heartbeatTimeoutMs,
  retry,
});

const short = proxyActivities<Pick<TurnActivities, "admitTurn" | "awaitGrant" | "endTurn">>({
  startToCloseTimeout: 15_000,
  heartbeatTimeout: heartbeatTimeoutMs,
  // The database or a worker may be away for as long as it takes.
  retry: { ...retry, maximumAttempts: Number.POSITIVE_INFINITY },
});

export const { callModel, runTool } = steps;
export const { admitTurn, awaitGrant, endTurn } = short;
