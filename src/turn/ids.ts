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
  return `${prefixes[kind]}_${newIdDigits()}`;
}

function newIdDigits(): string {
  const time = Date.now().toString(16).padStart(12, "0");
  return `${time}${randomBytes(10).toString("hex")}`;
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

/** A new id for a copy of an item: of the same prefix, which tells providers the item's type. */
export function copiedItemId(item: { id: string; type: string }): string {
  const prefix = /^([a-z_]{1,24})_/.exec(item.id)?.[1];
  return prefix === undefined ? newItemId(item.type) : `${prefix}_${newIdDigits()}`;
}
