import { Refusal } from "./failures.ts";
import type { Item } from "./items.ts";
import { answeredCall, callKey, callOf } from "./pairs.ts";
import type { CallRef } from "./pairs.ts";
import type { TurnRequest } from "./request.ts";

const words = (itemType: string): string => itemType.replaceAll("_", " ");

function askedCalls(
  pendingCalls: readonly CallRef[],
  items: readonly Item[],
): Map<string, CallRef> {
  const calls = [...pendingCalls, ...items.map(callOf).filter((call) => call !== null)];
  return new Map(calls.map((call) => [callKey(call), call]));
}

/** The keys of the calls that the items answer, all of which were asked. */
function answeredCalls(
  asked: ReadonlyMap<string, CallRef>,
  items: readonly Item[],
  param: string,
): Set<string> {
  const answered = new Set<string>();
  for (const item of items) {
    const call = answeredCall(item);
    if (call === null) continue;
    answered.add(callKey(call));
    if (asked.has(callKey(call))) continue;
    const problem = `No tool call found for ${words(item.type)} with call_id ${call.id}.`;
    throw new Refusal("unknown_call", problem, param);
  }
  return answered;
}

/**
 * Items that are written to a conversation answer no call that was never made.
 *
 * @throws Refusal `unknown_call`.
 */
export function checkWrittenAnswers(
  pendingCalls: readonly CallRef[],
  items: readonly Item[],
): void {
  answeredCalls(askedCalls(pendingCalls, items), items, "items");
}

/**
 * All calls that the conversation waits for are answered, and no other [9]; those of a response that was
 * cut short may be.
 *
 * @param mayLeave calls may stay without an answer: the model is told that it is lost.
 * @throws Refusal `unanswered_calls` or `unknown_call`.
 */
export function checkAnswers(
  pendingCalls: readonly CallRef[],
  { input }: TurnRequest,
  mayLeave = false,
): void {
  const asked = askedCalls(pendingCalls, input);
  const answered = answeredCalls(asked, input, "input");
  const missing = [...asked].flatMap(([key, call]) =>
    answered.has(key) || call.isOptional ? [] : [call],
  );
  if (missing.length === 0 || mayLeave) return;
  const named = missing.map((call) => `${words(call.type)} ${call.id}`).join(", ");
  throw new Refusal(
    "unanswered_calls",
    `No tool output found for ${named}. Answer all calls in one request.`,
    "input",
  );
}
