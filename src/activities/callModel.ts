import { Context } from "@temporalio/activity";
import { ModelStreamTranslator } from "../events/translator.ts";
import type { ModelOutput } from "../events/translator.ts";
import type { StepWriter } from "../events/writer.ts";
import { priceOf, readUsage } from "../responses/pricing.ts";
import type { ModelCallEnd } from "../store/modelCalls.ts";
import { closeModelCall } from "../store/modelCalls.ts";
import { claimStep, finishStep } from "../store/steps.ts";
import type { Claim, Fence, StepResult } from "../store/steps.ts";
import type { Agent } from "../turn/agent.ts";
import { isTerminalEvent } from "../turn/events.ts";
import type { TurnEvent } from "../turn/events.ts";
import { failure, failureRules, StepFailure } from "../turn/failures.ts";
import type { Failure } from "../turn/failures.ts";
import { isFunctionCall } from "../turn/items.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict } from "../turn/verdict.ts";
import { finishTurn } from "./finishTurn.ts";
import { readModelCall } from "./modelContext.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { StepStopped } from "./runningTurns.ts";
import {
  claimToken,
  currentFence,
  keepHeartbeating,
  retryAfterFailure,
  retryLater,
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
  writer: StepWriter;
  ledger: ModelCallEnd;
}

/** The provider's word on how its response ended. */
interface ProviderEnd {
  status: "completed" | "incomplete";
  reason: string | null;
}

/** The `callModel` activity: one model call, from its claim to the transaction that ends the step. */
export function createCallModel(parts: Parts) {
  return async function callModel(input: { step: number }): Promise<StepVerdict> {
    const fence = currentFence(input.step);
    const claim = await claimStep(
      parts.database,
      { fence, token: claimToken(fence), kind: "model" },
      parts.currentRun,
    );
    if (claim.outcome === "recorded") return claim.verdict;
    if (claim.outcome === "fenced") throw retryLater("fenced");
    parts.announce();
    const stopHeartbeats = keepHeartbeating();
    const { controller: stop, release } = parts.runningTurns.register(fence.turnId);
    const writer = parts.writer.open(fence, {
      fenced: () => stop.abort(new StepStopped("fenced")),
      cancelRequested: () => stop.abort(new StepStopped("cancel_requested")),
    });
    const ledger = openLedger(claim);
    const unlink = linkStops(stop, claim.turn);
    try {
      return await runModelStep({ parts, claim, turn: claim.turn, fence, stop, writer, ledger });
    } finally {
      unlink();
      writer.discard();
      release();
      stopHeartbeats();
    }
  };
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

/** Stops the step at the turn's deadline and when Temporal takes the attempt back. */
function linkStops(stop: AbortController, turn: Turn): () => void {
  const { cancellationSignal } = Context.current();
  const leftMs = Math.max(0, turn.deadlineAt.getTime() - Date.now());
  const timer = setTimeout(() => stop.abort(new StepStopped("deadline")), leftMs);
  const handOver = () => stop.abort(new StepStopped("handover"));
  cancellationSignal.addEventListener("abort", handOver);
  if (turn.cancelRequestedAt !== null) stop.abort(new StepStopped("cancel_requested"));
  return () => {
    clearTimeout(timer);
    cancellationSignal.removeEventListener("abort", handOver);
  };
}

async function runModelStep(step: ModelStep): Promise<StepVerdict> {
  const { parts, turn } = step;
  try {
    const agent = await parts.agents(turn.agent, turn.agentVersion);
    if (agent === null) throw new StepFailure(failure("unknown_agent"));
    const missing = agent.tools.find((name) => parts.tools.get(name) === undefined);
    if (missing !== undefined) {
      throw new StepFailure(failure("internal", `This worker has no tool '${missing}'.`));
    }
    const { output, end } = await streamModel(step, agent);
    return await finishModelStep(step, output, end);
  } catch (error) {
    if (step.stop.signal.aborted) return stopStep(step, step.stop.signal.reason as StepStopped);
    if (error instanceof StepFailure) return failStep(step, error.failure);
    throw error;
  }
}

/** Streams one call into the event log. */
async function streamModel(
  step: ModelStep,
  agent: Agent,
): Promise<{ output: ModelOutput; end: ProviderEnd }> {
  const { parts, turn, writer, stop } = step;
  const call = await readModelCall(parts.database, parts.tools, turn, agent, step.fence.step);
  const translator = new ModelStreamTranslator({
    firstOutputIndex: step.claim.firstOutputIndex,
    isServerCall: serverCalls(agent, turn),
  });
  const put = (event: TurnEvent) => writer.append(event, translator.nextOutputIndex);
  let bytes = 0;
  stop.signal.throwIfAborted();
  const stream = parts.endpoint.stream(call, {
    signal: stop.signal,
    idleTimeoutMs: turn.limits.idleTimeoutMs,
    onRequestId: (id) => (step.ledger.requestId = id),
  });
  let last: TurnEvent | undefined;
  for await (const event of stream) {
    noteResponse(step.ledger, turn, event);
    if (isTerminalEvent(event.type)) last = event;
    bytes += sizeOf(event);
    if (bytes > turn.limits.maxOutputBytes) throw new StepFailure(failure("output_too_large"));
    for (const translated of translator.translate(event)) await put(translated);
  }
  if (last === undefined) throw new StepFailure(failure("stream_truncated"));
  const response = last["response"] as Record<string, unknown>;
  const finalItems = Array.isArray(response["output"]) ? response["output"] : [];
  const { events, output } = translator.finish(finalItems);
  for (const event of events) await put(event);
  return { output, end: providerEnd(last.type, response) };
}

/**
 * Which calls Turnkeeper answers: those of the agent's tools, and those of tools that nobody has,
 * which go back to the model as an error. Definitions that a provider loads by itself
 * (`tool_search`, `namespace`) have names that no list here knows; their calls are the client's.
 */
function serverCalls(agent: Agent, turn: Turn): (item: Record<string, unknown>) => boolean {
  const tools = turn.request.tools as { type: string; name?: string }[];
  const clients = new Set(tools.flatMap((tool) => (tool.type === "function" ? [tool.name] : [])));
  const loads = tools.some((tool) => tool.type === "tool_search" || tool.type === "namespace");
  return (item) => {
    const name = String(item["name"]);
    return agent.tools.includes(name) || !(clients.has(name) || loads);
  };
}

function providerEnd(type: string, response: Record<string, unknown>): ProviderEnd {
  if (type === "response.completed") return { status: "completed", reason: null };
  const details = response["incomplete_details"] as { reason?: string } | null | undefined;
  return { status: "incomplete", reason: details?.reason ?? "unknown" };
}

function sizeOf(event: TurnEvent): number {
  const delta = event["delta"];
  if (typeof delta === "string") return delta.length;
  return event.type === "response.output_item.done"
    ? JSON.stringify(event["item"] ?? "").length
    : 0;
}

/** Keeps what the provider says of its response: id, tokens, cost. */
function noteResponse(ledger: ModelCallEnd, turn: Turn, event: TurnEvent): void {
  const response = event["response"] as Record<string, unknown> | undefined;
  if (response === undefined || response === null) return;
  if (typeof response["id"] === "string") ledger.responseId = response["id"];
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
  const asksClient = output.output.some((entry) => isFunctionCall(entry.item as never));
  const verdict: StepVerdict = goesOn
    ? { next: "tools", tools: output.calls.map((call) => call.name), thenEnd: asksClient }
    : { next: "end", status: isOverLimit ? "incomplete" : end.status };
  const result: StepResult = {
    verdict,
    items: output.items,
    output: output.output,
    calls: goesOn ? output.calls : [],
    events: await step.writer.drain(),
    nextOutputIndex: output.nextOutputIndex,
  };
  if (goesOn) return storeStep(step, result);
  const reason = isOverLimit ? "step_limit" : end.reason;
  return finishTurn(
    step.parts,
    turn,
    isOverLimit || end.status === "incomplete"
      ? { status: "incomplete", incompleteReason: reason ?? "unknown" }
      : { status: "completed" },
    { fence, result, modelCall: ledger },
    step.stop.signal,
  );
}

async function storeStep(step: ModelStep, result: StepResult): Promise<StepVerdict> {
  const { parts, turn, fence, ledger } = step;
  const stored = await persist(
    () =>
      parts.database.transaction(async (tx) => {
        const isMine = await finishStep(tx, turn, fence, result);
        if (isMine) await closeModelCall(tx, ledger);
        return isMine;
      }),
    step.stop.signal,
  );
  // Not mine any more, or stored by a send whose answer was lost: the retry's claim tells which.
  if (!stored) throw retryLater("fenced");
  parts.announce();
  return result.verdict;
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
  const rule = failureRules[cause.class];
  if (rule.action === "retry" && fence.attempt < turn.limits.maxAttemptsPerStep) {
    throw retryAfterFailure(cause, fence.attempt);
  }
  return finishTurn(parts, turn, { status: "failed", failure: cause }, undefined, step.stop.signal);
}

/** Something outside of the call ends it. */
async function stopStep(step: ModelStep, stopped: StepStopped): Promise<StepVerdict> {
  const { parts, turn, fence } = step;
  // The signal has done its work; what follows has to reach the database nevertheless.
  const unstopped = new AbortController().signal;
  parts.log.info({ turn: turn.id, step: fence.step, reason: stopped.reason }, "model call stopped");
  if (stopped.reason === "fenced") throw retryLater("fenced");
  await settle(step);
  if (stopped.reason === "handover") throw retryLater("handover", 0);
  return finishTurn(
    parts,
    turn,
    stopped.reason === "cancel_requested"
      ? { status: "cancelled" }
      : { status: "incomplete", incompleteReason: "deadline" },
    undefined,
    unstopped,
  );
}

/** Puts the partial text on record and closes the call's row in the ledger. */
async function settle(step: ModelStep): Promise<void> {
  await step.writer.flush();
  await closeModelCall(step.parts.database, step.ledger);
}
