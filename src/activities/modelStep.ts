import { ApplicationFailure } from "@temporalio/activity";
import { StoreUnavailable } from "../store/database.ts";
import type { Ending } from "../store/endings.ts";
import { degradeTurn, giveUpResponse } from "../store/keptResponses.ts";
import { completeWastedCall, dropModelCall, readFailedCalls } from "../store/modelCalls.ts";
import type { ModelCallEnd } from "../store/modelCalls.ts";
import type { Fence } from "../store/fence.ts";
import { hasShownText } from "../store/turnOutcome.ts";
import { giveUpCall } from "../store/wastedCalls.ts";
import { defineAgent } from "../turn/agent.ts";
import { retryDelayMs } from "../turn/backoff.ts";
import { failure, failureRules, StepFailure } from "../turn/failures.ts";
import type { Failure } from "../turn/failures.ts";
import { fallbackFor, nextTry } from "../turn/fallbacks.ts";
import type { Degradation } from "../turn/turn.ts";
import type { StepVerdict } from "../turn/verdict.ts";
import { finishModelStep } from "./finishModelStep.ts";
import { finishTurn } from "./finishTurn.ts";
import { ModelPaused } from "./modelPauses.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { StepStopped } from "./runningTurns.ts";
import {
  linkStops,
  retryAfterFailure,
  retryBeforeDeadline,
  retryLater,
  tryElsewhere,
} from "./stepContext.ts";
import { estimateInput, openCall, sayStaticAnswer, streamModel } from "./streamModel.ts";
import type { Claimed, ModelAnswer, ModelStep } from "./streamModel.ts";
import { takeUpResponse } from "./takeUpResponse.ts";

/** A turn that has a fallback does not wait longer than this for a limit that others have met. */
const maxHeldBeforeFallbackMs = 5_000;

/** An agent's own text takes neither time nor tools, so a turn that is left with it gets it. */
const endOfTime = new Date(8_640_000_000_000_000);

/**
 * Runs a model step that was claimed.
 *
 * @param takenBack aborts when this attempt has to leave its step to another one.
 * @throws a retryable failure when the step is to be tried again.
 */
export async function runModelStep(
  parts: Parts,
  fence: Fence,
  claim: Claimed,
  takenBack: AbortSignal,
): Promise<StepVerdict> {
  const { turn } = claim;
  parts.announce(turn.id, claim.events);
  const { controller: stop, release } = parts.runningTurns.register(fence.turnId);
  const writer = parts.writer.open(fence, {
    fenced: () => stop.abort(new StepStopped("fenced")),
    failed: (error) => {
      // The message alone: the error's details may quote the answer.
      const refused = { turn: turn.id, step: fence.step, reason: String(error) };
      parts.log.error(refused, "the database refused a step's events");
      stop.abort(new StepFailure(failure("internal"), { cause: error }));
    },
    cancelRequested: () => stop.abort(new StepStopped("cancel_requested")),
  });
  const isStatic = turn.degraded === "static_answer";
  const unlink = linkStops(stop, turn, takenBack, isStatic ? endOfTime : turn.deadlineAt);
  const ledger = openLedger(claim);
  const unread = { call: null, limit: null };
  const opened = { parts, claim, turn, fence, stop, takenBack, writer, ledger, ...unread };
  try {
    const known = await parts.agents(turn.agent, turn.agentVersion);
    // Of one that is not registered nothing but the name is known.
    const defined = known ?? defineAgent({ name: turn.agent, model: turn.model });
    const agent = isStatic ? { ...defined, tools: [] } : defined;
    const keptId = claim.kept?.responseId ?? null;
    const isSent = keptId !== null;
    const step: ModelStep = { ...opened, agent, isSent, isWhole: isSent, keptId };
    if (known === null) return await failStep(step, failure("unknown_agent"));
    return await tryModelStep(step);
  } finally {
    unlink();
    writer.discard();
    release();
  }
}

function openLedger(claim: Claimed): ModelCallEnd {
  return {
    id: claim.modelCallId ?? "",
    outcome: "wasted",
    responseId: claim.kept?.responseId ?? null,
    requestId: null,
    tokens: null,
    isEstimated: false,
    costUsd: null,
    failure: null,
  };
}

async function tryModelStep(step: ModelStep): Promise<StepVerdict> {
  const { parts, turn, agent } = step;
  try {
    const missing = agent.tools.find((name) => parts.tools.get(name) === undefined);
    if (missing !== undefined) {
      if (step.claim.kept === null) await settle(step);
      throw tryElsewhere(parts, turn, missing, step.fence.attempt);
    }
    return await finishModelStep(step, await answer(step));
  } catch (cause) {
    const { signal } = step.stop;
    const error: unknown = signal.aborted ? signal.reason : cause;
    if (error instanceof StepStopped) return stopStep(step, error);
    if (error instanceof StepFailure) return failStep(step, error.failure);
    if (error instanceof ModelPaused) return holdStep(step, error);
    if (error instanceof ApplicationFailure && error.type === "fenced") await noteExactCost(step);
    if (error instanceof ApplicationFailure || error instanceof StoreUnavailable) throw error;
    parts.log.error({ turn: turn.id, step: step.fence.step, err: error }, "a model step broke");
    return failStep(step, failure("internal"));
  }
}

async function answer(step: ModelStep): Promise<ModelAnswer> {
  const { claim, turn } = step;
  if (claim.kept !== null) return takeUpResponse(step, claim.kept);
  const open = await openCall(step, claim.firstOutputIndex, claim.shownIds);
  return turn.degraded === "static_answer" ? sayStaticAnswer(step, open) : streamModel(step, open);
}

/** A failure is the provider's or the request's: its class decides [11]. */
async function failStep(step: ModelStep, cause: Failure): Promise<StepVerdict> {
  const { parts, turn, fence, ledger } = step;
  parts.log.warn(
    { turn: turn.id, step: fence.step, attempt: fence.attempt, failure: cause },
    "model call failed",
  );
  const isOver = cause.class === "response_cancelled";
  if (step.keptId !== null && !isOver && failureRules[cause.class].action === "retry") {
    // The way to the response failed, not the response: the next attempt goes on with it.
    await step.writer.flush(step.takenBack);
    throw retryAfterFailure(cause, fence.attempt, turn);
  }
  ledger.failure = cause;
  // A refused request has no stream that could have told it.
  ledger.requestId ??= cause.requestId ?? null;
  await settle(step);
  const stopped: unknown = step.stop.signal.reason;
  if (stopped instanceof StepStopped) return stopStep(step, stopped);
  const failed = await readFailedCalls(parts.database, fence);
  if (cause.class === "rate_limited") {
    // Calls that were held back have not failed: the others wait as long as this one does.
    const failures = failed.filter((call) => call.model === turn.model).length;
    parts.modelPauses.pause(turn.model, retryDelayMs(cause, failures, 0));
  }
  const next = nextTry(step.agent, turn, failed, cause);
  switch (next.next) {
    case "same_model":
      throw retryAfterFailure(cause, next.failures, turn);
    case "fallback":
      await degrade(step, "fallback", next.model);
      throw retryLater(cause.class, 0);
    case "static_answer":
      await degrade(step, "static_answer", turn.model);
      throw retryLater(cause.class, 0);
    case "fail":
      // What a limit has ended has not failed: what was done before it is kept.
      return endUnfinished(
        step,
        step.limit === null
          ? { status: "failed", failure: cause }
          : { status: "incomplete", incompleteReason: step.limit },
      );
  }
}

/** The call was not sent, so it leaves no trace in the ledger and counts for nothing. */
async function holdStep(step: ModelStep, { delayMs }: ModelPaused): Promise<never> {
  const { parts, turn, fence } = step;
  const held = { turn: turn.id, step: fence.step, model: turn.model, delayMs };
  parts.log.info(held, "a model call waits for the provider's rate limit");
  // It may stand in for one that was sent, whose response the provider has lost.
  step.isSent = false;
  await settle(step);
  const fallback = fallbackFor(step.agent, turn, "rate_limited");
  if (fallback === undefined || delayMs < maxHeldBeforeFallbackMs) {
    throw retryBeforeDeadline("rate_limited", delayMs, turn);
  }
  await degrade(step, "fallback", fallback.model);
  throw retryLater("rate_limited", 0);
}

/** Has the turn go on with something else than the model that has failed; the next attempt does. */
async function degrade(
  { parts, turn, fence, takenBack }: ModelStep,
  degraded: Degradation,
  model: string,
): Promise<void> {
  parts.log.warn({ turn: turn.id, agent: turn.agent, degraded, model }, "falling back");
  await persist(() => degradeTurn(parts.database, fence, degraded, model), takenBack);
}

/** Something outside of the call ends it. */
async function stopStep(step: ModelStep, stopped: StepStopped): Promise<StepVerdict> {
  const { parts, turn, fence } = step;
  parts.log.info({ turn: turn.id, step: fence.step, reason: stopped.reason }, "model call stopped");
  if (stopped.reason === "fenced") {
    await noteExactCost(step);
    throw retryLater("fenced");
  }
  if (stopped.reason === "handover") {
    // A response that the provider keeps is gone on with, also one that had ended before this did.
    const isKept = step.agent.durability === "background" && step.ledger.responseId !== null;
    if (isKept) await step.writer.flush(step.takenBack);
    else await settle(step);
    throw retryLater("handover", 0);
  }
  await settle(step);
  if (stopped.reason === "deadline" && (await isLeftWithStaticAnswer(step))) {
    await degrade(step, "static_answer", turn.model);
    throw retryLater("deadline", 0);
  }
  return endUnfinished(
    step,
    stopped.reason === "cancel_requested"
      ? { status: "cancelled" }
      : { status: "incomplete", incompleteReason: "deadline" },
  );
}

/** Whether the agent always answers, and nothing of an answer was shown. */
async function isLeftWithStaticAnswer(step: ModelStep): Promise<boolean> {
  const { parts, turn, agent, takenBack } = step;
  if (agent.staticAnswer === null) return false;
  return !(await persist(() => hasShownText(parts.database, turn), takenBack));
}

/** Ends the turn in the middle of its step, unless somebody else has the step by now [3]. */
function endUnfinished(step: ModelStep, ending: Ending): Promise<StepVerdict> {
  const { parts, turn, fence } = step;
  // The step's signal may have done its work; this has to reach the database nevertheless.
  return finishTurn(parts, turn, ending, { ifStep: fence }, step.takenBack);
}

/**
 * Somebody else has the step, and this call is wasted; what the provider said of its cost is no estimate.
 * An open row is another attempt's, which goes on with the same response.
 */
async function noteExactCost({ parts, ledger }: ModelStep): Promise<void> {
  if (ledger.tokens === null || ledger.isEstimated) return;
  await completeWastedCall(parts.database, ledger).catch(() => {});
}

/** Puts the partial text on record and closes the call's row in the ledger. */
async function settle(step: ModelStep): Promise<void> {
  const { parts, turn, fence, ledger, keptId } = step;
  ledger.outcome = "wasted";
  await step.writer.flush(step.takenBack);
  const isOurs = await persist(() => closeLedger(step), step.takenBack);
  // Behind the ledger, which the provider's answer completes.
  if (keptId !== null && isOurs) parts.cancelResponse(turn.id, keptId);

  async function closeLedger({ call: sent, agent, isSent, isWhole }: ModelStep): Promise<boolean> {
    if (!isSent) {
      await dropModelCall(parts.database, ledger.id);
      return true;
    }
    const call = { end: ledger, isWhole, inputTokens: sent && (() => estimateInput(sent)) };
    if (agent.durability === "background") {
      return giveUpResponse(parts.database, turn, fence, call);
    }
    await parts.database.transaction((tx) => giveUpCall(tx, turn, call));
    return true;
  }
}
