/** The application that the workers of the crash matrix run: two tools with an effect outside. */
import { z } from "zod";
import { defineAgent, defineTool } from "../src/index.ts";
import type { ToolContext } from "../src/index.ts";

const { EFFECTS_URL } = process.env;

async function act(tool: string, { idempotencyKey, signal }: ToolContext): Promise<string> {
  const url = `${EFFECTS_URL}/${tool}/${encodeURIComponent(idempotencyKey)}`;
  return (await fetch(url, { signal })).text();
}

const parameters = z.object({ order: z.string() });

export const tools = [
  defineTool({
    name: "charge",
    description: "Charges an order; a second time would charge it twice.",
    parameters,
    handler: (_, context) => act("charge", context),
  }),
  defineTool({
    name: "look_up",
    description: "Looks an order up; again does no harm.",
    parameters,
    repeatable: true,
    handler: (_, context) => act("look_up", context),
  }),
];

/** One agent for each policy, under the policy's name. */
export const agents = (["foreground", "background"] as const).map((durability) =>
  defineAgent({
    name: durability,
    model: "gpt-crash",
    durability,
    tools: tools.map((tool) => tool.name),
  }),
);
