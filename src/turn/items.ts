import { newItemId } from "./ids.ts";

/**
 * One Responses API item, as it lies in the database and travels to the model. Only the fields that
 * Turnkeeper acts on are named; everything else passes through unchanged.
 */
export interface Item {
  type: string;
  id: string;
  [field: string]: unknown;
}

/** A `function_call` item: what the model asks for. `arguments` is JSON text as the model wrote it. */
export interface FunctionCallItem extends Item {
  type: "function_call";
  call_id: string;
  name: string;
  arguments: string;
}

/** A `function_call_output` item: the answer to the call with the same `call_id`. */
export interface FunctionCallOutputItem extends Item {
  type: "function_call_output";
  call_id: string;
  output: unknown;
}

export function isFunctionCall(item: Item): item is FunctionCallItem {
  return (
    item.type === "function_call" &&
    typeof item["call_id"] === "string" &&
    typeof item["name"] === "string"
  );
}

export function isFunctionCallOutput(item: Item): item is FunctionCallOutputItem {
  return item.type === "function_call_output" && typeof item["call_id"] === "string";
}

/**
 * The `function_call` items that no later `function_call_output` answers, in order. Some providers
 * use the same call ids again in every answer, so an output before its call does not count.
 */
export function unansweredCalls(items: readonly Item[]): FunctionCallItem[] {
  const open = new Map<string, FunctionCallItem>();
  for (const item of items) {
    if (isFunctionCall(item)) open.set(item.call_id, item);
    else if (isFunctionCallOutput(item)) open.delete(item.call_id);
  }
  return [...open.values()];
}

/** A user message made of plain text, in the form the Responses API stores it. */
export function userMessage(text: string): Item {
  return {
    type: "message",
    id: newItemId("message"),
    role: "user",
    status: "completed",
    content: [{ type: "input_text", text }],
  };
}

/** The text of all `output_text` parts of the messages among `items`, joined without a separator. */
export function outputText(items: readonly Item[]): string {
  return items
    .filter((item) => item.type === "message" && Array.isArray(item["content"]))
    .flatMap((item) => item["content"] as { type?: string; text?: string }[])
    .filter((part) => part.type === "output_text" && typeof part.text === "string")
    .map((part) => part.text)
    .join("");
}
