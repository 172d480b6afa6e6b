import type { TurnEvent } from "../turn/events.ts";

/** Delta types that may be joined; the others carry more than a piece of one text. */
const mergeable = new Set([
  "response.output_text.delta",
  "response.reasoning_text.delta",
  "response.reasoning_summary_text.delta",
  "response.refusal.delta",
  "response.function_call_arguments.delta",
  "response.mcp_call_arguments.delta",
  "response.custom_tool_call_input.delta",
  "response.code_interpreter_call_code.delta",
]);

const placeFields = ["item_id", "output_index", "content_index", "summary_index"];

function canJoin(left: TurnEvent, right: TurnEvent): boolean {
  return (
    left.type === right.type &&
    mergeable.has(left.type) &&
    typeof left["delta"] === "string" &&
    typeof right["delta"] === "string" &&
    placeFields.every((field) => left[field] === right[field])
  );
}

function join(left: TurnEvent, right: TurnEvent): TurnEvent {
  const joined = { ...left, delta: `${left["delta"] as string}${right["delta"] as string}` };
  const logprobs = [left["logprobs"], right["logprobs"]];
  if (!logprobs.every((each) => Array.isArray(each))) return joined;
  return { ...joined, logprobs: logprobs.flat() };
}

/** Joins adjacent deltas of one part: the same text in fewer events. */
export function mergeDeltas(events: readonly TurnEvent[]): TurnEvent[] {
  const merged: TurnEvent[] = [];
  for (const event of events) {
    const last = merged.at(-1);
    if (last !== undefined && canJoin(last, event)) merged[merged.length - 1] = join(last, event);
    else merged.push(event);
  }
  return merged;
}
