import { ApplicationFailure } from "@temporalio/activity";
import type { ModelOutput } from "../events/translator.ts";
import { StoreUnavailable } from "../store/database.ts";
import type { Ending } from "../store/endings.ts";
import { closeModelCall, countFailedCalls, dropModelCall } from "../store/modelCalls.ts";
import type { ModelCallEnd } from "../store/modelCalls.ts";
import type { Fence } from "../store/fence.ts";
import type { StepResult } from "../store/steps.ts";
import { failure, failureRules, StepFailure } from "../turn/failures.ts";
import type { Failure } from "../turn/failures.ts";
import type { StepVerdict } from "../turn/verdict.ts";
import { asksClient } from "./callOwners.ts";
import { finishStep } from "./finishStep.ts";
import { finishTurn } from "./finishTurn.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { StepStopped } from "./runningTurns.ts";
import { linkStops, retryAfterFailure, retryLater, tryElsewhere } from "./stepContext.ts";
import { streamModel } from "./streamModel.ts";
import type { Claimed, ModelStep, ProviderEnd } from "./streamModel.ts";

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
  const unlink = linkStops(stop, turn, takenBack);
  const ledger = openLedger(claim);
  try {
    return await tryModelStep({
      parts,
      claim,
      turn,
      fence,
      stop,
      takenBack,
      writer,
      ledger,
      isSent: false,
    });
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
    responseId: null,
    requestId: null,
    tokens: null,
    costUsd: null,
    failureClass: null,
  };
}

async function tryModelStep(step: ModelStep): Promise<StepVerdict> {
  const { parts, turn } = step;
  try {
    const agent = await parts.agents(turn.agent, turn.agentVersion);
    if (agent === null) throw new StepFailure(failure("unknown_agent"));
    const missing = agent.tools.find((name) => parts.tools.get(name) === undefined);
    if (missing !== undefined) {
      await settle(step);
      throw tryElsewhere(parts, turn, missing);
    }
    const { output, end } = await streamModel(step, agent);
    return await finishModelStep(step, output, end);
  } catch (cause) {
    const { signal } = step.stop;
    const error: unknown = signal.aborted ? signal.reason : cause;
    if (error instanceof StepStopped) return stopStep(step, error);
    if (error instanceof StepFailure) return failStep(step, error.failure);
    if (error instanceof ApplicationFailure || error instanceof StoreUnavailable) throw error;
    parts.log.error({ turn: turn.id, step: step.fence.step, err: error }, "a model step broke");
    return failStep(step, failure("internal"));
  }
}

/** Ends the step: with tools to run, or with the turn. */
async function finishModelStep(
  step: ModelStep,
  output: ModelOutput,
  end: ProviderEnd,
): Promise<StepVerdict> {
  const { turn, fence, ledger } = step;
  ledger.outcome = "used";
  const stepsAfter = fence.step + output.calls.length;
  const isOverLimit =
    output.calls.length > turn.limits.maxCallsPerStep ||
    (output.calls.length > 0 && stepsAfter >= turn.limits.maxSteps);
  const goesOn = end.status === "completed" && output.calls.length > 0 && !isOverLimit;
  // The model may have written anything for a name; history and columns get those that are known.
  const nameOf = (name: string) => step.parts.tools.get(name)?.name ?? "unknown tool";
  const verdict: StepVerdict = goesOn
    ? {
        next: "tools",
        tools: output.calls.map((call) => nameOf(call.name)),
        thenEnd: asksClient(output),
      }
    : { next: "end", status: isOverLimit ? "incomplete" : end.status };
  const result: StepResult = {
    verdict,
    items: output.items,
    output: output.output,
    calls: goesOn ? output.calls : [],
    events: await step.writer.drain(step.takenBack),
    nextOutputIndex: output.nextOutputIndex,
  };
  if (goesOn) {
    const finished = { fence, result, modelCall: ledger };
    return finishStep(step.parts, turn, finished, step.stop.signal);
  }
  const reason = isOverLimit ? "step_limit" : end.reason;
  return finishTurn(
    step.parts,
    turn,
    isOverLimit || end.status === "incomplete"
      ? { status: "incomplete", incompleteReason: reason ?? "unknown" }
      : { status: "completed" },
    { lastStep: { fence, result, modelCall: ledger } },
    step.stop.signal,
  );
}

/** A failure is the provider's or the request's: its class decides [11]. */
async function failStep(step: ModelStep, cause: Failure): Promise<StepVerdict> {
  const { parts, turn, fence, ledger } = step;
  ledger.failureClass = cause.class;
  parts.log.warn(
    { turn: turn.id, step: fence.step, attempt: fence.attempt, failure: cause },
    "model call failed",
  );
  await settle(step);
  const stopped: unknown = step.stop.signal.reason;
  if (stopped instanceof StepStopped) return stopStep(step, stopped);
  if (failureRules[cause.class].action === "retry") {
    // Temporal's attempts include those that a deploy or a lost database cost; these are not meant.
    const failures = await countFailedCalls(parts.database, fence);
    if (failures < turn.limits.maxAttemptsPerStep) throw retryAfterFailure(cause, failures, turn);
  }
  return endUnfinished(step, { status: "failed", failure: cause });
}

/** Something outside of the call ends it. */
async function stopStep(step: ModelStep, stopped: StepStopped): Promise<StepVerdict> {
  const { parts, turn, fence } = step;
  parts.log.info({ turn: turn.id, step: fence.step, reason: stopped.reason }, "model call stopped");
  if (stopped.reason === "fenced") throw retryLater("fenced");
  await settle(step);
  if (stopped.reason === "handover") throw retryLater("handover", 0);
  return endUnfinished(
    step,
    stopped.reason === "cancel_requested"
      ? { status: "cancelled" }
      : { status: "incomplete", incompleteReason: "deadline" },
  );
}

/** Ends the turn in the middle of its step, unless somebody else has the step by now [3]. */
function endUnfinished(step: ModelStep, ending: Ending): Promise<StepVerdict> {
  const { parts, turn, fence } = step;
  // The step's signal may have done its work; this has to reach the database nevertheless.
  return finishTurn(parts, turn, ending, { ifStep: fence }, step.takenBack);
}

/** Puts the partial text on record and closes the call's row in the ledger. */
async function settle(step: ModelStep): Promise<void> {
  const { database } = step.parts;
  step.ledger.outcome = "wasted";
  await step.writer.flush(step.takenBack);
  await persist(
    () =>
      step.isSent ? closeModelCall(database, step.ledger) : dropModelCall(database, step.ledger.id),
    step.takenBack,
  );
}
