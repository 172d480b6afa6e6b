import type { TurnEvent } from "./events.ts";

type Fields = Record<string, unknown>;

function listOf(value: unknown): Fields[] {
  return Array.isArray(value) ? (value as Fields[]) : [];
}

/** Parts of an item's content by their type: the events that write them, and the field they fill. */
const contentParts: Record<string, { event: string; field: string; more: Fields }> = {
  output_text: { event: "response.output_text", field: "text", more: { logprobs: [] } },
  refusal: { event: "response.refusal", field: "refusal", more: {} },
  reasoning_text: { event: "response.reasoning_text", field: "text", more: {} },
};

function* eventsOfContent(part: Fields, at: Fields): Generator<TurnEvent> {
  const known = contentParts[String(part["type"])];
  if (known === undefined) return;
  const { event, field, more } = known;
  yield { type: "response.content_part.added", ...at, part: { ...part, [field]: "" } };
  yield { type: `${event}.delta`, ...at, delta: part[field] ?? "", ...more };
  yield { type: `${event}.done`, ...at, [field]: part[field], ...more };
  yield { type: "response.content_part.done", ...at, part };
}

function* eventsOfSummary(part: Fields, at: Fields): Generator<TurnEvent> {
  const { text } = part;
  yield { type: "response.reasoning_summary_part.added", ...at, part: { ...part, text: "" } };
  yield { type: "response.reasoning_summary_text.delta", ...at, delta: text };
  yield { type: "response.reasoning_summary_text.done", ...at, text };
  yield { type: "response.reasoning_summary_part.done", ...at, part };
}

/** What an item of each type looks like before anything of it is known. */
const opened: Record<string, Fields> = {
  message: { content: [] },
  reasoning: { summary: [] },
  function_call: { arguments: "" },
  mcp_call: { arguments: "", output: null, error: null },
};

/** The type of the events that carry the arguments of a call. */
const argumentsEvents: Record<string, string> = {
  function_call: "response.function_call_arguments",
  mcp_call: "response.mcp_call_arguments",
};

/** All that comes before the item's end. */
function* beginning(item: Fields, index: number): Generator<TurnEvent> {
  const type = String(item["type"]);
  const at = { item_id: item["id"], output_index: index };
  const empty = { ...item, status: "in_progress", ...opened[type] };
  yield { type: "response.output_item.added", output_index: index, item: empty };
  if (type === "mcp_call") yield { type: "response.mcp_call.in_progress", ...at };
  for (const [summary_index, part] of listOf(item["summary"]).entries()) {
    yield* eventsOfSummary(part, { ...at, summary_index });
  }
  for (const [content_index, part] of listOf(item["content"]).entries()) {
    yield* eventsOfContent(part, { ...at, content_index });
  }
  const written = argumentsEvents[type];
  if (written === undefined) return;
  yield { type: `${written}.delta`, ...at, delta: item["arguments"] };
  yield { type: `${written}.done`, ...at, arguments: item["arguments"] };
}

/**
 * The events of an item that is there as a whole, in the order of a stream: each text as one delta,
 * everything else in its `added` and `done`.
 */
export function* eventsOfItem(item: Fields, index: number): Generator<TurnEvent> {
  yield* beginning(item, index);
  if (item["type"] === "mcp_call") {
    const end = item["error"] ? "failed" : "completed";
    yield { type: `response.mcp_call.${end}`, item_id: item["id"], output_index: index };
  }
  yield { type: "response.output_item.done", output_index: index, item };
}

/** The events of an item whose end is still to come. */
export function eventsOfOpenItem(item: Fields, index: number): TurnEvent[] {
  return [...beginning(item, index)];
}
