import type { Item } from "../turn/items.ts";

/** An item as it is sent: `id` only where the provider needs its own id back. */
export type ModelInputItem = { type: string; [field: string]: unknown };

/**
 * Types whose `id` the input schema makes optional (openai 7.57.0, `ResponseInputItem`). Stored ids
 * are ours, and the API refuses an id whose prefix is not the one of its type; so it is left out.
 */
const typesWithoutId: ReadonlySet<string> = new Set([
  "message",
  "function_call",
  "function_call_output",
  "custom_tool_call",
  "custom_tool_call_output",
  "computer_call_output",
  "shell_call",
  "shell_call_output",
  "apply_patch_call",
  "apply_patch_call_output",
  "tool_search_call",
  "tool_search_output",
  "mcp_approval_response",
  "compaction",
  "compaction_trigger",
  "additional_tools",
  "configuration_update",
]);

/** Fields of output items that no input item has. `parsed_arguments` is added by SDK helpers. */
const outputOnlyFields = ["created_by", "parsed_arguments"];

function isEmptyReasoning(item: Item): boolean {
  const content = item["content"];
  const hasContent = Array.isArray(content) && content.length > 0;
  return item.type === "reasoning" && !item["encrypted_content"] && !hasContent;
}

/** `parsed` is added to output_text parts by SDK helpers. */
function withoutParsed(part: unknown): unknown {
  if (typeof part !== "object" || part === null || !("parsed" in part)) return part;
  const { parsed: _, ...rest } = part;
  return rest;
}

function toInputItem(item: Item): ModelInputItem {
  const sent: ModelInputItem = { ...item };
  if (typesWithoutId.has(item.type)) delete sent["id"];
  for (const field of outputOnlyFields) delete sent[field];
  // The API answers 400 "Unknown parameter" to the status of a reasoning item.
  if (item.type === "reasoning") delete sent["status"];
  if (item.type === "message" && Array.isArray(item["content"])) {
    sent["content"] = item["content"].map(withoutParsed);
  }
  return sent;
}

/**
 * Stored items as the model gets them. Each item is turned on its own and always in the same way, so
 * that what was sent stays a prefix of what is sent [10]. Reasoning items that carry nothing are
 * dropped; types that are not known pass through unchanged.
 */
export function toModelInput(items: readonly Item[]): ModelInputItem[] {
  return items.filter((item) => !isEmptyReasoning(item)).map(toInputItem);
}
