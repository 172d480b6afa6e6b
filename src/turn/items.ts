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
