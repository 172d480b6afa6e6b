import { ApplicationFailure, Context } from "@temporalio/activity";
import { ModelStreamTranslator } from "../events/translator.ts";
import type { ModelOutput } from "../events/translator.ts";
import type { StepWriter } from "../events/writer.ts";
import { priceOf, readUsage } from "../responses/pricing.ts";
import { StoreUnavailable } from "../store/database.ts";
import type { Ending } from "../store/endings.ts";
import type { ModelCallEnd } from "../store/modelCalls.ts";
import { closeModelCall, countFailedCalls, dropModelCall } from "../store/modelCalls.ts";
import type { Claim, Fence, StepResult } from "../store/steps.ts";
import type { Agent } from "../turn/agent.ts";
import { isTerminalEvent } from "../turn/events.ts";
import type { TurnEvent } from "../turn/events.ts";
import { failure, failureRules, StepFailure } from "../turn/failures.ts";
import type { Failure } from "../turn/failures.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict } from "../turn/verdict.ts";
import { asksClient, serverCalls } from "./callOwners.ts";
import { finishStep } from "./finishStep.ts";
import { finishTurn } from "./finishTurn.ts";
import type { HeadStarts } from "./headStarts.ts";
import { readModelCall } from "./modelContext.ts";
import { OutputMeter } from "./outputMeter.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { StepStopped } from "./runningTurns.ts";
import {
  claimForAttempt,
  currentFence,
  keepHeartbeating,
  linkStops,
  retryAfterFailure,
  retryLater,
  tryElsewhere,
} from "./stepContext.ts";

type Claimed = Extract<Claim, { outcome: "claimed" }>;

/** A model step while it runs. */
interface ModelStep {
  parts: Parts;
  claim: Claimed;
  turn: Turn;
  fence: Fence;
  /** Aborts with the reason to stop: cancel, fence, deadline, handover. */
  stop: AbortController;
  /** Aborts when the attempt has to leave the step to another one. */
  takenBack: AbortSignal;
  writer: StepWriter;
  ledger: ModelCallEnd;
  /** Whether the request may have left. */
  isSent: boolean;
}

/** The provider's word on how its response ended. */
interface ProviderEnd {
  status: "completed" | "incomplete";
  reason: string | null;
}

/** The `callModel` activity: one model call, from its claim to the transaction that ends the step. */
export function createCallModel(parts: Parts, headStarts: HeadStarts) {
  return async function callModel(input: { step: number }): Promise<StepVerdict> {
    const fence = currentFence(input.step);
    const stopHeartbeats = keepHeartbeating();
    try {
      const { cancellationSignal } = Context.current();
      const joined = await headStarts.join(fence, cancellationSignal);
      if (joined !== null) return joined;
      const claim = await claimForAttempt(parts, fence, "model");
      if (claim.outcome === "recorded") return claim.verdict;
      if (claim.outcome === "fenced") throw retryLater("fenced");
      return await runClaimedModelStep(parts, fence, claim, cancellationSignal);
    } finally {
      stopHeartbeats();
    }
  };
}

/**
 * Runs a model step that was claimed.
 *
 * @param takenBack aborts when this attempt has to leave its step to another one.
 * @throws a retryable failure when the step is to be tried again.
 */
export async function runClaimedModelStep(
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
    cancelRequested: () => stop.abort(new StepStopped("cancel_requested")),
  });
  const unlink = linkStops(stop, turn, takenBack);
  const ledger = openLedger(claim);
  try {
    const step = { parts, claim, turn, fence, stop, takenBack, writer, ledger, isSent: false };
    return await runModelStep(step);
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

async function runModelStep(step: ModelStep): Promise<StepVerdict> {
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
  } catch (error) {
    if (step.stop.signal.aborted) return stopStep(step, step.stop.signal.reason as StepStopped);
    if (error instanceof StepFailure) return failStep(step, error.failure);
    if (error instanceof ApplicationFailure || error instanceof StoreUnavailable) throw error;
    parts.log.error({ turn: turn.id, step: step.fence.step, err: error }, "a model step broke");
    return failStep(step, failure("internal"));
  }
}

/** Streams one call into the event log. */
async function streamModel(
  step: ModelStep,
  agent: Agent,
): Promise<{ output: ModelOutput; end: ProviderEnd }> {
  const { parts, turn, writer, stop } = step;
  const next = await readModelCall(parts.database, parts.tools, turn, agent, step.fence.step);
  const translator = new ModelStreamTranslator({
    firstOutputIndex: step.claim.firstOutputIndex,
    isServerCall: serverCalls(agent, turn),
    usedIds: [...next.usedIds, ...step.claim.shownIds],
  });
  const put = (event: TurnEvent) => writer.append(event, translator.nextOutputIndex);
  const meter = new OutputMeter(next.writtenBytes);
  stop.signal.throwIfAborted();
  step.isSent = true;
  const stream = parts.endpoint.stream(next.call, {
    signal: stop.signal,
    idleTimeoutMs: turn.limits.idleTimeoutMs,
    onRequestId: (id) => (step.ledger.requestId = id),
  });
  let last: TurnEvent | undefined;
  for await (const event of stream) {
    noteResponse(step.ledger, turn, event);
    if (isTerminalEvent(event.type)) last = event;
    if (meter.add(event) > turn.limits.maxOutputBytes) {
      throw new StepFailure(failure("output_too_large"));
    }
    for (const translated of translator.translate(event)) await put(translated);
  }
  if (last === undefined) throw new StepFailure(failure("stream_truncated"));
  const response = last["response"] as Record<string, unknown>;
  const finalItems = Array.isArray(response["output"]) ? response["output"] : [];
  const { events, output } = translator.finish(finalItems);
  for (const event of events) await put(event);
  return { output, end: providerEnd(last.type, response) };
}

function providerEnd(type: string, response: Record<string, unknown>): ProviderEnd {
  if (type === "response.completed") return { status: "completed", reason: null };
  const details = response["incomplete_details"] as { reason?: string } | null | undefined;
  return { status: "incomplete", reason: details?.reason ?? "unknown" };
}

/** What no column can hold is no id that could be asked for later either. */
const providerId = /^[\x21-\x7e]{1,256}$/;

/** Keeps what the provider says of its response: id, tokens, cost. */
function noteResponse(ledger: ModelCallEnd, turn: Turn, event: TurnEvent): void {
  const response = event["response"] as Record<string, unknown> | undefined;
  if (response === undefined || response === null) return;
  const { id } = response;
  if (typeof id === "string" && providerId.test(id)) ledger.responseId = id;
  const tokens = readUsage(response["usage"]);
  if (tokens === null) return;
  ledger.tokens = tokens;
  const model = typeof response["model"] === "string" ? response["model"] : turn.model;
  ledger.costUsd = priceOf(model, tokens).costUsd;
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
    events: await step.writer.drain(),
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
  if (step.stop.signal.aborted) return stopStep(step, step.stop.signal.reason as StepStopped);
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
  await step.writer.flush();
  await persist(
    () =>
      step.isSent ? closeModelCall(database, step.ledger) : dropModelCall(database, step.ledger.id),
    step.takenBack,
  );
}
