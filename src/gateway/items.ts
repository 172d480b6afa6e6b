import type { Item } from "../turn/items.ts";

/**
 * An item as lists show it. Messages may come in with a string as their content; the API's types
 * for what comes out have a list of parts and a status.
 */
export function shownItem(item: Item): Item {
  if (item.type !== "message") return item;
  const { content } = item;
  const type = item["role"] === "assistant" ? "output_text" : "input_text";
  const noAnnotations = type === "output_text" ? { annotations: [] } : {};
  const parts = typeof content === "string" ? [{ type, text: content, ...noAnnotations }] : content;
  return { ...item, status: item["status"] ?? "completed", content: parts };
}
