import type { Item } from "../turn/items.ts";

/** How the two items of one kind of call find each other, and what stands in for a lost output. */
interface PairType {
  call: string;
  output: string;
  /** Null where the item takes no part, such as a search that the provider runs itself. */
  callKey(call: Item): string | null;
  outputKey(output: Item): string | null;
  /** The output's fields; null where none can be made up, so that the call is left out instead. */
  standIn(call: Item, key: string): Record<string, unknown> | null;
}

const lostMessage =
  "The call was not answered: whether it ran, and with what effect, is unknown. Do not assume either.";

/** The form in which tools report errors to the model. */
const lostOutput = JSON.stringify({ error: { type: "unknown_outcome", message: lostMessage } });

function textOf(item: Item, ...fields: string[]): string | null {
  const found = fields.map((field) => item[field]).find((value) => typeof value === "string");
  return found === undefined ? null : found;
}

function pairedByCallId(
  call: string,
  standIn: (key: string) => Record<string, unknown> | null,
): PairType {
  return {
    call,
    output: `${call.replace(/_call$/, "")}_call_output`,
    callKey: (item) => textOf(item, "call_id"),
    outputKey: (item) => textOf(item, "call_id"),
    standIn: (_, key) => standIn(key),
  };
}

/**
 * All calls of the Responses API (openai 7.57.0, `ResponseInputItem`) whose output is an item of its
 * own that the client sends. Hosted calls carry their output; `program` waits for the provider.
 */
const pairTypes: readonly PairType[] = [
  pairedByCallId("function_call", (call_id) => ({ call_id, output: lostOutput })),
  pairedByCallId("custom_tool_call", (call_id) => ({ call_id, output: lostOutput })),
  pairedByCallId("shell_call", (call_id) => ({
    call_id,
    output: [{ stdout: "", stderr: lostMessage, outcome: { type: "timeout" } }],
  })),
  pairedByCallId("apply_patch_call", (call_id) => ({
    call_id,
    status: "failed",
    output: lostMessage,
  })),
  // Its output is a screenshot, which cannot be made up.
  pairedByCallId("computer_call", () => null),
  {
    call: "local_shell_call",
    output: "local_shell_call_output",
    callKey: (call) => textOf(call, "call_id", "id"),
    // The output's `id` is the call's `call_id`; some clients send `call_id` as well.
    outputKey: (output) => textOf(output, "call_id", "id"),
    standIn: (_, key) => ({ id: key, output: lostOutput }),
  },
  {
    call: "tool_search_call",
    output: "tool_search_output",
    callKey: (call) => (call["execution"] === "server" ? null : textOf(call, "call_id")),
    outputKey: (output) => (output["execution"] === "server" ? null : textOf(output, "call_id")),
    standIn: (_, call_id) => ({ call_id, execution: "client", status: "completed", tools: [] }),
  },
  {
    call: "mcp_approval_request",
    output: "mcp_approval_response",
    callKey: (request) => request.id,
    outputKey: (response) => textOf(response, "approval_request_id"),
    standIn: (_, key) => ({
      approval_request_id: key,
      approve: false,
      reason: "Nobody answered the request.",
    }),
  },
];

const byCall = new Map(pairTypes.map((pair) => [pair.call, pair]));
const byOutput = new Map(pairTypes.map((pair) => [pair.output, pair]));

interface Matching {
  /** Calls without an output. */
  unanswered: Map<Item, { pair: PairType; key: string }>;
  /** Outputs without a call, second outputs among them. */
  strays: Set<Item>;
}

/** An output belongs to the nearest open call of its kind and key before it. */
function matchPairs(items: readonly Item[]): Matching {
  const unanswered: Matching["unanswered"] = new Map();
  const strays: Matching["strays"] = new Set();
  const open = new Map<string, Item>();
  for (const item of items) {
    const called = byCall.get(item.type);
    const callKey = called?.callKey(item) ?? null;
    if (called && callKey !== null) {
      open.set(`${called.call} ${callKey}`, item);
      unanswered.set(item, { pair: called, key: callKey });
    }
    const answered = byOutput.get(item.type);
    const outputKey = answered?.outputKey(item) ?? null;
    if (!answered || outputKey === null) continue;
    const place = `${answered.call} ${outputKey}`;
    const call = open.get(place);
    if (call === undefined) strays.add(item);
    else unanswered.delete(call);
    open.delete(place);
  }
  return { unanswered, strays };
}

/**
 * Makes every pair whole [9]: a call without an output gets one right behind it that says that its
 * outcome is unknown, an output without a call is dropped, of two outputs the first one counts.
 * Deterministic; everything else stays as it is and where it is.
 */
export function repairPairs(items: readonly Item[]): Item[] {
  const { unanswered, strays } = matchPairs(items);
  return items.flatMap((item) => {
    if (strays.has(item)) return [];
    const lost = unanswered.get(item);
    if (lost === undefined) return [item];
    const fields = lost.pair.standIn(item, lost.key);
    if (fields === null) return [];
    return [item, { type: lost.pair.output, id: `${item.id}_unanswered`, ...fields }];
  });
}
