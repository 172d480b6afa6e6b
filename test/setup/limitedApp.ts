import { defineTool } from "../../src/tools/defineTool.ts";
import { defineAgent } from "../../src/turn/agent.ts";

export const maxTurnTokens = 500;

/** For workers in processes of their own: a model that asks for the same twice has gone too far. */
export const agents = [
  defineAgent({
    name: "default",
    model: "gpt-6.1-terra",
    tools: ["echo"],
    limits: { maxRepeatedCalls: 2, maxTurnTokens },
  }),
];

export const tools = [
  defineTool({
    name: "echo",
    description: "Says the same every time.",
    parameters: { type: "object", properties: {} },
    handler: () => "echo",
  }),
];
