import { ModelStreamTranslator } from "../events/translator.ts";
import type { ModelOutput } from "../events/translator.ts";
import type { StepWriter } from "../events/writer.ts";
import { priceOf, readUsage } from "../responses/pricing.ts";
import type { ModelCallEnd } from "../store/modelCalls.ts";
import type { Claim } from "../store/claims.ts";
import type { Fence } from "../store/fence.ts";
import type { Agent } from "../turn/agent.ts";
import { isTerminalEvent } from "../turn/events.ts";
import type { TurnEvent } from "../turn/events.ts";
import { failure, StepFailure } from "../turn/failures.ts";
import type { Turn } from "../turn/turn.ts";
import { serverCalls } from "./callOwners.ts";
import { readModelCall } from "./modelContext.ts";
import { OutputMeter } from "./outputMeter.ts";
import type { Parts } from "./parts.ts";

export type Claimed = Extract<Claim, { outcome: "claimed" }>;

/** A model step while it runs. */
export interface ModelStep {
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
export interface ProviderEnd {
  status: "completed" | "incomplete";
  reason: string | null;
}

/**
 * Streams one call into the event log.
 *
 * @throws StepFailure for everything that is not a whole answer; the signal's reason when stopped.
 */
export async function streamModel(
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
  const put = async (event: TurnEvent) => {
    if (!writer.append(event, translator.nextOutputIndex)) await writer.flush(stop.signal);
  };
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
  ledger.costUsd = priceOf(model, tokens);
}
