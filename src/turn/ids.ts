import { randomBytes } from "node:crypto";

/**
 * The prefixes are those of the OpenAI API, so that an id tells its kind to people and tools that
 * know that API. A turn is one response over HTTP, hence `resp_`.
 */
const prefixes = {
  turn: "resp",
  conversation: "conv",
  message: "msg",
  functionCall: "fc",
  functionCallOutput: "fco",
  reasoning: "rs",
  mcpCall: "mcp",
  item: "item",
  toolCall: "call",
  modelCall: "mc",
  apiKey: "key",
  request: "req",
} as const;

export type IdKind = keyof typeof prefixes;

/**
 * A new id: prefix, then 32 hex digits of which the first 12 are the time in milliseconds, so that
 * index inserts stay local and ids sort by age.
 */
export function newId(kind: IdKind): string {
  const time = Date.now().toString(16).padStart(12, "0");
  return `${prefixes[kind]}_${time}${randomBytes(10).toString("hex")}`;
}

const idKindOfItemType: Record<string, IdKind> = {
  message: "message",
  function_call: "functionCall",
  function_call_output: "functionCallOutput",
  reasoning: "reasoning",
  mcp_call: "mcpCall",
};

/** A new id for an item of the given Responses API type. */
export function newItemId(type: string): string {
  return newId(idKindOfItemType[type] ?? "item");
}
