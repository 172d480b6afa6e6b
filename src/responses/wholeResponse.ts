import type { UpstreamEvent } from "./answer.ts";

export type WholeResponse = { status?: unknown; output: unknown[]; [field: string]: unknown };

type Fields = Record<string, unknown>;

/** Whether this is a Response object as far as anything here reads it: it has its list of items. */
export function isWholeResponse(value: unknown): value is WholeResponse {
  return typeof value === "object" && value !== null && Array.isArray((value as Fields)["output"]);
}

function* eventsOfText(part: Fields, at: Fields): Generator<UpstreamEvent> {
  yield { type: "response.content_part.added", ...at, part: { ...part, text: "" } };
  yield { type: "response.output_text.delta", ...at, delta: part["text"], logprobs: [] };
  yield { type: "response.output_text.done", ...at, text: part["text"], logprobs: [] };
  yield { type: "response.content_part.done", ...at, part };
}

function* eventsOfItem(item: Fields, outputIndex: number): Generator<UpstreamEvent> {
  const at = { item_id: item["id"], output_index: outputIndex };
  const { type } = item;
  const opened = {
    ...item,
    status: "in_progress",
    ...(type === "message" ? { content: [] } : {}),
    ...(type === "function_call" ? { arguments: "" } : {}),
  };
  yield { type: "response.output_item.added", output_index: outputIndex, item: opened };
  const parts = Array.isArray(item["content"]) ? (item["content"] as Fields[]) : [];
  for (const [contentIndex, part] of parts.entries()) {
    if (part["type"] !== "output_text") continue;
    yield* eventsOfText(part, { ...at, content_index: contentIndex });
  }
  if (type === "function_call") {
    const text = item["arguments"];
    yield { type: "response.function_call_arguments.delta", ...at, delta: text };
    yield { type: "response.function_call_arguments.done", ...at, arguments: text };
  }
  yield { type: "response.output_item.done", output_index: outputIndex, item };
}

/**
 * The events that a finished response stands for, in the order of a stream: text and arguments as
 * one delta each, everything else in its item's `added` and `done`. Without `sequence_number`.
 */
export function* eventsOfResponse(response: WholeResponse): Generator<UpstreamEvent> {
  const opened = { ...response, status: "in_progress", output: [], usage: null };
  yield { type: "response.created", response: opened };
  for (const [outputIndex, item] of response.output.entries()) {
    yield* eventsOfItem(item as Fields, outputIndex);
  }
  yield { type: `response.${response.status as string}`, response };
}
