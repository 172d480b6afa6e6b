import type { ModelOutput } from "../events/translator.ts";
import type { Agent } from "../turn/agent.ts";
import { unansweredCalls } from "../turn/pairs.ts";
import type { Turn } from "../turn/turn.ts";

/**
 * Which calls Turnkeeper answers: those of the agent's tools, and those of tools that nobody has,
 * which go back to the model as an error. Definitions that a provider loads by itself
 * (`tool_search`, `namespace`) or that came as an item (`additional_tools`) have names that no list here
 * knows; their calls are the client's.
 */
export function serverCalls(agent: Agent, turn: Turn): (item: Record<string, unknown>) => boolean {
  const tools = turn.request.tools as { type: string; name?: string }[];
  const clients = new Set(tools.flatMap((tool) => (tool.type === "function" ? [tool.name] : [])));
  const loads =
    tools.some((tool) => tool.type === "tool_search" || tool.type === "namespace") ||
    turn.request.input.some((item) => item.type === "additional_tools");
  return (item) => {
    const name = String(item["name"]);
    return agent.tools.includes(name) || !(clients.has(name) || loads);
  };
}

/** Whether the model waits for the client: then it is not called again before the client answers. */
export function asksClient(output: ModelOutput): boolean {
  // Calls of server tools are not shown; a provider that runs a call itself shows its output too.
  return unansweredCalls(output.output.map(({ item }) => item)).length > 0;
}
