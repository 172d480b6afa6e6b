import type { ModelOutput } from "../events/translator.ts";
import type { Agent } from "../turn/agent.ts";
import type { Turn } from "../turn/turn.ts";

/**
 * Which calls Turnkeeper answers: those of the agent's tools, and those of tools that nobody has,
 * which go back to the model as an error. Definitions that a provider loads by itself
 * (`tool_search`, `namespace`) have names that no list here knows; their calls are the client's.
 */
export function serverCalls(agent: Agent, turn: Turn): (item: Record<string, unknown>) => boolean {
  const tools = turn.request.tools as { type: string; name?: string }[];
  const clients = new Set(tools.flatMap((tool) => (tool.type === "function" ? [tool.name] : [])));
  const loads = tools.some((tool) => tool.type === "tool_search" || tool.type === "namespace");
  return (item) => {
    const name = String(item["name"]);
    return agent.tools.includes(name) || !(clients.has(name) || loads);
  };
}

/** Output items that ask the client for an answer (openai 7.57.0, `ResponseOutputItem`). */
const askingTypes: ReadonlySet<unknown> = new Set([
  "function_call",
  "custom_tool_call",
  "computer_call",
  "local_shell_call",
  "shell_call",
  "apply_patch_call",
  "mcp_approval_request",
]);

/** Whether the model waits for the client: then it is not called again before the client answers. */
export function asksClient(output: ModelOutput): boolean {
  // A provider that runs such a call itself puts its output beside it.
  const answered = new Set(
    output.items.flatMap((item) => (item.type.endsWith("_output") ? [item["call_id"]] : [])),
  );
  return output.output.some(
    ({ item }) => askingTypes.has(item["type"]) && !answered.has(item["call_id"] ?? item["id"]),
  );
}
