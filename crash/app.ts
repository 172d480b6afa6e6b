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

const fallbacks = [{ model: "gpt-crash-fallback" }];
const staticAnswer = "No model answers now.";

/** For each policy one agent under its name, and others that go on where their model does not. */
export const agents = (["foreground", "background"] as const).flatMap((durability) => {
  const base = { model: "gpt-crash", durability, tools: tools.map((tool) => tool.name) };
  return [
    defineAgent({ ...base, name: durability }),
    defineAgent({ ...base, name: `${durability}-fallback`, fallbacks }),
    defineAgent({ ...base, name: `${durability}-static`, staticAnswer }),
  ];
});
