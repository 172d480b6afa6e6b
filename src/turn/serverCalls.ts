import type { OutputEntry, TurnEvent } from "./events.ts";
import { newItemId } from "./ids.ts";
import type { Item } from "./items.ts";
import type { ToolCall } from "./verdict.ts";

/** The label under which responses show the tools that Turnkeeper runs itself. */
const serverLabel = "turnkeeper";

/** A server tool's call as the stream announces it. */
export function mcpCallItem(id: string, name: string): Record<string, unknown> {
  return {
    id,
    type: "mcp_call",
    status: "in_progress",
    server_label: serverLabel,
    name,
    arguments: "",
    output: null,
    error: null,
    approval_request_id: null,
  };
}

/** Whether an announced item is a server tool's call. */
export function isMcpCallItem(item: Record<string, unknown>): boolean {
  return item["type"] === "mcp_call" && item["server_label"] === serverLabel;
}

/**
 * What the outcome of a server tool's call leaves: the events that show it, the item that the response
 * keeps of the call, and the item that answers it to the model [9].
 */
export function toolOutcome(
  call: ToolCall,
  outcome: { output: string; isError: boolean },
): { events: TurnEvent[]; entry: OutputEntry; answer: Item } {
  const place = { item_id: call.itemId, output_index: call.outputIndex };
  const item = {
    ...mcpCallItem(call.itemId, call.name),
    status: outcome.isError ? "failed" : "completed",
    arguments: call.arguments,
    output: outcome.isError ? null : outcome.output,
    error: outcome.isError ? outcome.output : null,
  };
  return {
    events: [
      {
        type: outcome.isError ? "response.mcp_call.failed" : "response.mcp_call.completed",
        ...place,
      },
      { type: "response.output_item.done", output_index: call.outputIndex, item },
    ],
    entry: { index: call.outputIndex, item },
    answer: {
      type: "function_call_output",
      id: newItemId("function_call_output"),
      call_id: call.callId,
      output: outcome.output,
      status: "completed",
    },
  };
}
