import { setTimeout as delay } from "node:timers/promises";
import { readEnded } from "../responses/answer.ts";
import type { ProviderResponse, UpstreamEvent } from "../responses/call.ts";
import { ResponseDiffers, withoutSeen } from "../responses/wholeResponse.ts";
import type { KeptResponse } from "../store/claims.ts";
import { replaceResponse } from "../store/keptResponses.ts";
import { Replaced } from "../store/steps.ts";
import { StepFailure } from "../turn/failures.ts";
import { outputText } from "../turn/items.ts";
import type { Item } from "../turn/items.ts";
import { retryLater } from "./stepContext.ts";
import { follow, openCall, prepareCall, put, streamModel } from "./streamModel.ts";
import type { ModelAnswer, ModelStep, OpenCall } from "./streamModel.ts";

/** How often a response that can no longer be streamed is asked for. */
const pollEveryMs = 2_000;

/**
 * Goes on with the response that an earlier attempt of the step began [7]: takes it if it has ended,
 * else resumes its stream behind the last event on record, else asks until it ends, else calls again.
 *
 * @throws as `streamModel`.
 */
export async function takeUpResponse(step: ModelStep, kept: KeptResponse): Promise<ModelAnswer> {
  const shown = new Set(kept.events.flatMap(idsShownBy));
  const others = step.claim.shownIds.filter((id) => !shown.has(id));
  const open = await openCall(step, kept.firstOutputIndex, others);
  const seen = open.translator.restore(kept.events);
  for (const event of seen) open.meter.add(event);
  const response = await retrieve(step);
  if (response === null) return callAgain(step, open);
  if (!isRunning(response)) return takeWhole(step, open, response, seen);
  return resume(step, open, kept, seen);
}

function idsShownBy(event: UpstreamEvent): unknown[] {
  const item = event["item"] as { id?: unknown; call_id?: unknown } | undefined;
  return item === undefined ? [] : [item.id, item.call_id];
}

function retrieve(step: ModelStep): Promise<ProviderResponse | null> {
  return step.parts.endpoint.retrieve(step.keptId ?? "", step.stop.signal);
}

function isRunning(response: ProviderResponse): boolean {
  return response["status"] === "queued" || response["status"] === "in_progress";
}

/** Takes a response that has ended: what the record lacks of it, or all of it if it is another one. */
async function takeWhole(
  step: ModelStep,
  open: OpenCall,
  response: ProviderResponse,
  seen: readonly UpstreamEvent[],
): Promise<ModelAnswer> {
  // It has ended: where it is no answer, there is nothing to come back for.
  step.keptId = null;
  try {
    return await follow(step, open, withoutSeen(readEnded(response), seen));
  } catch (error) {
    if (!(error instanceof ResponseDiffers)) throw error;
    return takeAnew(step, open, response);
  }
}

/** What subscribers saw is closed as incomplete [6], and the whole response follows. */
async function takeAnew(
  step: ModelStep,
  open: OpenCall,
  response: ProviderResponse,
): Promise<ModelAnswer> {
  await put(step, open.translator, open.translator.startOver());
  return follow(step, open, readEnded(response));
}

async function resume(
  step: ModelStep,
  open: OpenCall,
  kept: KeptResponse,
  seen: readonly UpstreamEvent[],
): Promise<ModelAnswer> {
  if (kept.cursor === null) return poll(step, open, seen);
  let last: UpstreamEvent | undefined;
  async function* noted(events: AsyncIterable<UpstreamEvent>) {
    for await (const event of events) yield (last = event);
  }
  const { endpoint } = step.parts;
  const stream = endpoint.resume(kept.responseId, kept.cursor, {
    signal: step.stop.signal,
    idleTimeoutMs: step.turn.limits.idleTimeoutMs,
  });
  try {
    const answer = await follow(step, open, noted(stream));
    const whole = last?.["response"] as ProviderResponse;
    const items = Array.isArray(whole["output"]) ? (whole["output"] as Item[]) : [];
    const isSame = outputText(items) === outputText(answer.output.items);
    return isSame ? answer : await takeAnew(step, open, whole);
  } catch (error) {
    const isRefused = error instanceof StepFailure && error.failure.class === "invalid_request";
    if (last !== undefined || !isRefused) throw error;
    return poll(step, open, seen);
  }
}

async function poll(
  step: ModelStep,
  open: OpenCall,
  seen: readonly UpstreamEvent[],
): Promise<ModelAnswer> {
  const { signal } = step.stop;
  for (;;) {
    await delay(pollEveryMs, undefined, { signal });
    const response = await retrieve(step);
    if (response === null) return callAgain(step, open);
    if (!isRunning(response)) return takeWhole(step, open, response, seen);
  }
}

/** The provider has the response no more: it is paid for, and the call is made again. */
async function callAgain(step: ModelStep, open: OpenCall): Promise<ModelAnswer> {
  const { parts, turn, fence } = step;
  const { translator } = open;
  step.keptId = null;
  await put(step, translator, translator.startOver());
  try {
    const id = await replaceResponse(parts.database, turn, fence, translator.nextOutputIndex);
    step.ledger = { ...step.ledger, id, responseId: null, requestId: null };
    step.isSent = false;
    step.isWhole = false;
  } catch (error) {
    throw error instanceof Replaced ? retryLater("fenced") : error;
  }
  // What was lost counts: the turn may have reached a limit with it.
  return streamModel(step, { ...open, next: await prepareCall(step) });
}
