import { z } from "zod";
import { defineTool } from "../tools/defineTool.ts";
import type { Tool } from "../tools/defineTool.ts";
import { defaultAgentName, defineAgent } from "../turn/agent.ts";
import type { Agent } from "../turn/agent.ts";

const currentTime = defineTool({
  name: "current_time",
  description: "Tells the current date and time in a time zone.",
  parameters: z.object({
    time_zone: z.string().default("UTC").describe("IANA name, such as Europe/Berlin"),
  }),
  repeatable: true,
  handler: ({ time_zone }) =>
    new Intl.DateTimeFormat("en-GB", {
      dateStyle: "full",
      timeStyle: "long",
      timeZone: time_zone,
    }).format(new Date()),
});

/** What a first run has to talk to while the application has not brought its own. */
export function exampleApp(model: string): { agents: Agent[]; tools: Tool[] } {
  const agent = defineAgent({
    name: defaultAgentName,
    model,
    instructions: "You are a helpful assistant. Answer briefly.",
    tools: [currentTime.name],
  });
  return { agents: [agent], tools: [currentTime] };
}
