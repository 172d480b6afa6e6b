import { ModelStreamTranslator } from "../events/translator.ts";
import type { ModelOutput } from "../events/translator.ts";
import type { StepWriter } from "../events/writer.ts";
import type { ModelCall, UpstreamEvent } from "../responses/call.ts";
import { readFinalUsage } from "../responses/usage.ts";
import { eventsOfResponse } from "../responses/wholeResponse.ts";
import { columnText } from "../store/columnText.ts";
import type { ModelCallEnd } from "../store/modelCalls.ts";
import type { Claim } from "../store/claims.ts";
import type { Fence } from "../store/fence.ts";
import { holdsStep } from "../store/steps.ts";
import type { Agent } from "../turn/agent.ts";
import type { BudgetLimit } from "../turn/budget.ts";
import { estimateTokens, estimateUsage } from "../turn/estimate.ts";
import { isTerminalEvent } from "../turn/events.ts";
import type { TurnEvent } from "../turn/events.ts";
import { failure, StepFailure } from "../turn/failures.ts";
import { priceOf } from "../turn/prices.ts";
import type { TokenCounts, Turn } from "../turn/turn.ts";
import { serverCalls } from "./callOwners.ts";
import { readModelCall } from "./modelContext.ts";
import type { NextModelCall } from "./modelContext.ts";
import { OutputMeter } from "./outputMeter.ts";
import type { Parts } from "./parts.ts";
import { StepStopped } from "./runningTurns.ts";

export type Claimed = Extract<Claim, { outcome: "claimed" }>;

/** A model step while it runs. */
export interface ModelStep {
  parts: Parts;
  claim: Claimed;
  turn: Turn;
  agent: Agent;
  fence: Fence;
  /** Aborts with the reason to stop: cancel, fence, deadline, handover. */
  stop: AbortController;
  /** Aborts when the attempt has to leave the step to another one. */
  takenBack: AbortSignal;
  writer: StepWriter;
  ledger: ModelCallEnd;
  /** The call, once it is prepared. */
  call: ModelCall | null;
  /** Whether the request may have left. */
  isSent: boolean;
  /** Whether all of it may have, which is when it is paid for. */
  isWhole: boolean;
  /** The response that the provider keeps, from its first event to its last. */
  keptId: string | null;
  /** The limit because of which this is the turn's last call, once the call is prepared [13]. */
  limit: BudgetLimit | null;
}

/** Generous: the API's own reasons have about 20. */
const maxReasonChars = 64;

/** The provider's word on how its response ended; the reason as a column takes it. */
export interface ProviderEnd {
  status: "completed" | "incomplete";
  reason: string | null;
}

/** A whole answer. */
export interface ModelAnswer {
  output: ModelOutput;
  end: ProviderEnd;
}

/** A call with what its events go through. */
export interface OpenCall {
  next: NextModelCall;
  translator: ModelStreamTranslator;
  meter: OutputMeter;
}

/** Prepares the call of a step, whose first item gets the place `firstOutputIndex`. */
export async function openCall(
  step: ModelStep,
  firstOutputIndex: number,
  shownIds: readonly string[],
): Promise<OpenCall> {
  const { agent, turn } = step;
  const next = await prepareCall(step);
  const translator = new ModelStreamTranslator({
    firstOutputIndex,
    isServerCall: serverCalls(agent, turn),
    usedIds: [...next.usedIds, ...shownIds],
  });
  return { next, translator, meter: new OutputMeter(next.writtenBytes) };
}

/** Decides from what is on record which call is the step's next one. */
export async function prepareCall(step: ModelStep): Promise<NextModelCall> {
  const { parts, turn, agent, fence, claim } = step;
  const { isUntried } = claim;
  const number = fence.step;
  const next = await readModelCall(parts.database, parts.tools, turn, agent, { number, isUntried });
  step.call = next.call;
  step.limit = next.limit;
  return next;
}

/**
 * Makes one call and streams it into the event log.
 *
 * @throws StepFailure for everything that is not a whole answer; the signal's reason when stopped;
 *   ModelPaused when nothing was sent; StepStopped `fenced` when somebody else had the step before the
 *   request was whole.
 */
export async function streamModel(step: ModelStep, open: OpenCall): Promise<ModelAnswer> {
  const { parts, turn, stop } = step;
  parts.modelPauses.check(turn.model, step.fence.attempt);
  stop.signal.throwIfAborted();
  step.isSent = true;
  const stream = parts.endpoint.stream(open.next.call, {
    confirm: confirmHeld(step),
    signal: stop.signal,
    idleTimeoutMs: turn.limits.idleTimeoutMs,
    onRequestId: (id) => (step.ledger.requestId = id),
  });
  return follow(step, open, stream);
}

/** A step is hardly ever taken over, and ended, within this time after it was known to be held. */
export const heldForMs = 250;

/**
 * Looks the step up again when the last time is too long ago. A process that was paused may have been
 * replaced, and would buy what its successor has bought [7].
 */
function confirmHeld(step: ModelStep): () => Promise<void> {
  const { parts, claim, fence, stop } = step;
  let heldAt = claim.askedAt;
  return async () => {
    while (Date.now() - heldAt >= heldForMs) {
      stop.signal.throwIfAborted();
      const askedAt = Date.now();
      if (!(await holdsStep(parts.database, fence))) throw new StepStopped("fenced");
      heldAt = askedAt;
    }
    step.isWhole = true;
  };
}

/** Answers with the agent's own text, where no model could. */
export async function sayStaticAnswer(step: ModelStep, open: OpenCall): Promise<ModelAnswer> {
  const content = [{ type: "output_text", text: step.agent.staticAnswer, annotations: [] }];
  const message = { type: "message", role: "assistant", status: "completed", content };
  const response = { status: "completed", output: [message] };
  return follow(step, open, eventsOfResponse(response));
}

/**
 * Streams the provider's events into the event log, up to the terminal one or to the limit of
 * output [13].
 *
 * @throws as {@link streamModel}.
 */
export async function follow(
  step: ModelStep,
  { translator, meter }: OpenCall,
  stream: AsyncIterable<UpstreamEvent> | Iterable<UpstreamEvent>,
): Promise<ModelAnswer> {
  let last: TurnEvent | undefined;
  for await (const event of stream) {
    noteResponse(step, event);
    if (isTerminalEvent(event.type)) last = event;
    if (meter.add(event) > step.turn.limits.maxOutputBytes) {
      throw new StepFailure(failure("output_too_large"));
    }
    await put(step, translator, translator.translate(event), event);
  }
  if (last === undefined) throw new StepFailure(failure("stream_truncated"));
  const response = last["response"] as Record<string, unknown>;
  const finalItems = Array.isArray(response["output"]) ? response["output"] : [];
  const { events, output } = translator.finish(finalItems);
  await put(step, translator, events, last);
  estimateUnsaid(step, finalItems as Record<string, unknown>[]);
  return { output, end: providerEnd(last.type, response) };
}

/** Queues what one event of the provider has become, together with its place in a kept response. */
export async function put(
  step: ModelStep,
  translator: ModelStreamTranslator,
  events: readonly TurnEvent[],
  from?: UpstreamEvent,
): Promise<void> {
  const { writer, keptId } = step;
  const hasRoom = events.map((event) => writer.append(event, translator.nextOutputIndex));
  const number = from?.["sequence_number"];
  if (keptId !== null) {
    writer.reach({ responseId: keptId, cursor: typeof number === "number" ? number : null });
  }
  if (hasRoom.includes(false)) await writer.flush(step.stop.signal);
}

function providerEnd(type: string, response: Record<string, unknown>): ProviderEnd {
  if (type === "response.completed") return { status: "completed", reason: null };
  const details = response["incomplete_details"] as { reason?: unknown } | null | undefined;
  const reason = details?.reason;
  const isSaid = typeof reason === "string" && reason !== "";
  return { status: "incomplete", reason: isSaid ? columnText(reason, maxReasonChars) : "unknown" };
}

/** What no column can hold is no id that could be asked for later either. */
const providerId = /^[\x21-\x7e]{1,256}$/;

/** Keeps what the provider says of its response: id, tokens, cost. */
function noteResponse(step: ModelStep, event: UpstreamEvent): void {
  const { ledger, turn, agent } = step;
  const response = event["response"] as Record<string, unknown> | undefined;
  if (response === undefined || response === null) return;
  const { id } = response;
  if (typeof id === "string" && providerId.test(id)) ledger.responseId = id;
  const isKept = agent.durability === "background" && !isTerminalEvent(event.type);
  step.keptId = isKept && step.isSent ? ledger.responseId : null;
  const tokens = readFinalUsage(event.type, response["usage"]);
  if (tokens === null) return;
  const model = typeof response["model"] === "string" ? response["model"] : turn.model;
  noteTokens(ledger, model, tokens);
}

function noteTokens(ledger: ModelCallEnd, model: string, tokens: TokenCounts): void {
  ledger.tokens = tokens;
  ledger.costUsd = priceOf(model, tokens);
}

/** About how many tokens a request has. */
export function estimateInput({ instructions, tools, input }: ModelCall): number {
  return estimateTokens(instructions, tools, input);
}

/** Some providers give a whole answer and no usage with it. */
function estimateUnsaid(step: ModelStep, items: readonly Record<string, unknown>[]): void {
  const { ledger, turn, call, isSent } = step;
  if (!isSent || call === null || ledger.tokens !== null) return;
  ledger.isEstimated = true;
  noteTokens(ledger, turn.model, estimateUsage(estimateInput(call), items));
}
