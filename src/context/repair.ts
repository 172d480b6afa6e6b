import type { Item } from "../turn/items.ts";
import { answeredCall, callKey, callOf, outputTypeOf } from "../turn/pairs.ts";
import type { CallRef, CallType } from "../turn/pairs.ts";

const lostMessage =
  "The call was not answered: whether it ran, and with what effect, is unknown. Do not assume either.";

/** The form in which tools report errors to the model. */
const lostOutput = JSON.stringify({ error: { type: "outcome_unknown", message: lostMessage } });

/** The fields of a lost output; null where none can be made up, so that the call is left out instead. */
const standIns: Readonly<Record<CallType, ((id: string) => Record<string, unknown>) | null>> = {
  function_call: (call_id) => ({ call_id, output: lostOutput }),
  custom_tool_call: (call_id) => ({ call_id, output: lostOutput }),
  shell_call: (call_id) => ({
    call_id,
    output: [{ stdout: "", stderr: lostMessage, outcome: { type: "timeout" } }],
  }),
  apply_patch_call: (call_id) => ({ call_id, status: "failed", output: lostMessage }),
  // Its output is a screenshot, which cannot be made up.
  computer_call: null,
  local_shell_call: (id) => ({ id, output: lostOutput }),
  tool_search_call: (call_id) => ({
    call_id,
    execution: "client",
    status: "completed",
    tools: [],
  }),
  mcp_approval_request: (approval_request_id) => ({
    approval_request_id,
    approve: false,
    reason: "Nobody answered the request.",
  }),
};

interface Matching {
  /** Calls without an output. */
  unanswered: Map<Item, CallRef>;
  /** Outputs without a call, second outputs among them. */
  strays: Set<Item>;
}

/** An output belongs to the nearest open call of its type and id before it. */
function matchPairs(items: readonly Item[]): Matching {
  const unanswered: Matching["unanswered"] = new Map();
  const strays: Matching["strays"] = new Set();
  const open = new Map<string, Item>();
  for (const item of items) {
    const call = callOf(item);
    if (call !== null) {
      open.set(callKey(call), item);
      unanswered.set(item, call);
    }
    const answered = answeredCall(item);
    if (answered === null) continue;
    const asking = open.get(callKey(answered));
    if (asking === undefined) strays.add(item);
    else unanswered.delete(asking);
    open.delete(callKey(answered));
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
    const standIn = standIns[lost.type];
    if (standIn === null) return [];
    const type = outputTypeOf(lost.type);
    return [item, { type, id: `${item.id}_unanswered`, ...standIn(lost.id) }];
  });
}
