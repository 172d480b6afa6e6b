import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { assembleContext } from "../src/context/assemble.ts";
import { repairPairs } from "../src/context/repair.ts";
import { userMessage } from "../src/turn/items.ts";
import type { Item } from "../src/turn/items.ts";
import { unansweredCalls } from "../src/turn/pairs.ts";

/** Both halves of every kind of pair, as the API writes them. */
const kinds = {
  function_call: {
    call: (key: string) => ({ type: "function_call", call_id: key, name: "f", arguments: "{}" }),
    output: (key: string) => ({ type: "function_call_output", call_id: key, output: "ok" }),
  },
  custom_tool_call: {
    call: (key: string) => ({ type: "custom_tool_call", call_id: key, name: "f", input: "" }),
    output: (key: string) => ({ type: "custom_tool_call_output", call_id: key, output: "ok" }),
  },
  local_shell_call: {
    call: (key: string) => ({ type: "local_shell_call", call_id: key, status: "completed" }),
    output: (key: string) => ({ type: "local_shell_call_output", id: key, output: "ok" }),
  },
  shell_call: {
    call: (key: string) => ({ type: "shell_call", call_id: key, action: {} }),
    output: (key: string) => ({ type: "shell_call_output", call_id: key, output: [] }),
  },
  apply_patch_call: {
    call: (key: string) => ({ type: "apply_patch_call", call_id: key, operation: {} }),
    output: (key: string) => ({
      type: "apply_patch_call_output",
      call_id: key,
      status: "completed",
    }),
  },
  computer_call: {
    call: (key: string) => ({ type: "computer_call", call_id: key, actions: [] }),
    output: (key: string) => ({ type: "computer_call_output", call_id: key, output: {} }),
  },
  tool_search_call: {
    call: (key: string) => ({ type: "tool_search_call", call_id: key, execution: "client" }),
    output: (key: string) => ({ type: "tool_search_output", call_id: key, tools: [] }),
  },
  mcp_approval_request: {
    call: (key: string) => ({ type: "mcp_approval_request", id: key, name: "f" }),
    output: (key: string) => ({
      type: "mcp_approval_response",
      approval_request_id: key,
      approve: true,
    }),
  },
};

type Kind = keyof typeof kinds;
type Part = "call" | "output";

interface Entry {
  kind: Kind | "message";
  part: Part;
  key: string;
}

let made = 0;
function itemOf({ kind, part, key }: Entry): Item {
  made += 1;
  if (kind === "message") return userMessage(`message ${made}`);
  const make: (key: string) => { type: string; [field: string]: unknown } = kinds[kind][part];
  return { id: `item_${made}`, ...make(key) };
}

const kindNames = Object.keys(kinds) as Kind[];
const entry: fc.Arbitrary<Entry> = fc.record({
  kind: fc.constantFrom(...kindNames, "message" as const),
  part: fc.constantFrom<Part>("call", "output"),
  key: fc.constantFrom("k1", "k2", "k3"),
});
const broken = fc.array(entry, { maxLength: 30 }).map((entries) => entries.map(itemOf));

/** Calls followed by all their outputs, messages between. */
const whole = fc
  .array(fc.array(fc.tuple(fc.constantFrom(...kindNames), fc.nat(99)), { maxLength: 4 }), {
    maxLength: 6,
  })
  .map((rounds) =>
    rounds.flatMap((round, number) => {
      const keyed = round.map(([kind], index) => ({ kind, key: `k${number}.${index}` }));
      const parts = (part: Part) => keyed.map((one) => itemOf({ ...one, part }));
      return [userMessage("go on"), ...parts("call"), ...parts("output").toReversed()];
    }),
  );

function keyOf(kind: Kind, part: Part, item: Item): unknown {
  if (kind === "mcp_approval_request") {
    return part === "call" ? item.id : item["approval_request_id"];
  }
  return kind === "local_shell_call" && part === "output" ? item.id : item["call_id"];
}

/** Walks the list as a strict server would: throws on the first item that breaks a pair. */
function assertWhole(items: readonly Item[]): void {
  const open = new Set<string>();
  for (const item of items) {
    for (const kind of kindNames) {
      if (item.type === kinds[kind].call("").type) {
        const place = `${kind} ${String(keyOf(kind, "call", item))}`;
        if (open.has(place)) throw new Error(`called again while open: ${place}`);
        open.add(place);
      }
      if (item.type !== kinds[kind].output("").type) continue;
      const place = `${kind} ${String(keyOf(kind, "output", item))}`;
      if (!open.delete(place)) throw new Error(`answers nothing: ${place}`);
    }
  }
  if (open.size > 0) throw new Error(`unanswered: ${[...open].join(", ")}`);
}

describe("repaired pairs [9]", () => {
  it("answer every call exactly once, behind it, and keep no other output", () => {
    fc.assert(fc.property(broken, (items) => assertWhole(repairPairs(items))));
  });

  it("leave a whole list alone", () => {
    fc.assert(
      fc.property(whole, (items) => {
        expect(repairPairs(items)).toEqual(items);
      }),
    );
  });

  it("are repaired once and for all", () => {
    fc.assert(
      fc.property(broken, (items) => {
        const repaired = repairPairs(items);
        expect(repairPairs(repaired)).toEqual(repaired);
      }),
    );
  });

  it("leave everything else where it was", () => {
    fc.assert(
      fc.property(broken, (items) => {
        const given = new Set(items);
        const kept = repairPairs(items).filter((item) => given.has(item));
        expect(kept).toEqual(items.filter((item) => kept.includes(item)));
        const messages = (list: Item[]) => list.filter((item) => item.type === "message");
        expect(messages(kept)).toEqual(messages(items));
      }),
    );
  });

  it("keep the repair of a whole list as a prefix of its continuation's [10]", () => {
    fc.assert(
      fc.property(whole, broken, (before, added) => {
        const sent = repairPairs(before);
        expect(repairPairs([...before, ...added]).slice(0, sent.length)).toEqual(sent);
      }),
    );
  });

  it("leave no call to be answered", () => {
    fc.assert(
      fc.property(broken, (items) => {
        expect(unansweredCalls(repairPairs(items))).toEqual([]);
      }),
    );
  });

  it("are the same for the same items", () => {
    fc.assert(
      fc.property(broken, (items) => {
        expect(repairPairs(structuredClone(items))).toEqual(repairPairs(items));
      }),
    );
  });
});

describe("a broken pair", () => {
  const call = (callId: string): Item =>
    itemOf({ kind: "function_call", part: "call", key: callId });
  const output = (callId: string, text: string): Item => ({
    type: "function_call_output",
    id: `fco_${callId}_${text}`,
    call_id: callId,
    output: text,
  });

  it("says that nobody knows the outcome", () => {
    const lost = call("call_1");
    const [, made] = repairPairs([lost]);
    expect(made).toMatchObject({ type: "function_call_output", call_id: "call_1" });
    expect(JSON.parse(made?.["output"] as string)).toMatchObject({
      error: { type: "outcome_unknown" },
    });
    expect(unansweredCalls(repairPairs([lost]))).toEqual([]);
  });

  it("is repaired right behind its call, before the outputs of others", () => {
    const items = [call("call_1"), call("call_2"), output("call_2", "two")];
    const types = repairPairs(items).map((item) => [item["call_id"], item.type]);
    expect(types).toEqual([
      ["call_1", "function_call"],
      ["call_1", "function_call_output"],
      ["call_2", "function_call"],
      ["call_2", "function_call_output"],
    ]);
  });

  it("keeps the first of two outputs", () => {
    const items = [call("call_1"), output("call_1", "first"), output("call_1", "second")];
    expect(repairPairs(items)).toEqual(items.slice(0, 2));
  });

  it("loses an output that comes before its call", () => {
    const [early, late] = [output("call_1", "early"), call("call_1")];
    const repaired = repairPairs([early, late]);
    expect(repaired).toHaveLength(2);
    expect(repaired[0]).toBe(late);
  });

  it("keeps call ids apart that a server uses again in every answer", () => {
    const items = [call("0"), output("0", "a"), userMessage("more"), call("0"), output("0", "b")];
    expect(repairPairs(items)).toEqual(items);
  });

  it("drops a computer call, whose screenshot cannot be made up", () => {
    const message = userMessage("hello");
    const lost = itemOf({ kind: "computer_call", part: "call", key: "call_1" });
    expect(repairPairs([message, lost])).toEqual([message]);
  });

  it("does not touch a tool search that the provider ran", () => {
    const items: Item[] = [
      { type: "tool_search_call", id: "a", call_id: null, execution: "server", arguments: {} },
      { type: "tool_search_output", id: "b", call_id: null, execution: "server", tools: [] },
    ];
    expect(repairPairs(items)).toEqual(items);
  });

  it("denies an approval that nobody gave", () => {
    const request = { type: "mcp_approval_request", id: "mcpr_1", name: "f", arguments: "{}" };
    expect(repairPairs([request])[1]).toMatchObject({
      type: "mcp_approval_response",
      approval_request_id: "mcpr_1",
      approve: false,
    });
  });
});

describe("the context of a model call", () => {
  it("is history, input and steps in this order, repaired across their borders", () => {
    const [history, input, steps] = [
      [itemOf({ kind: "function_call", part: "call", key: "call_1" })],
      [itemOf({ kind: "function_call", part: "output", key: "call_1" }), userMessage("and?")],
      [itemOf({ kind: "function_call", part: "call", key: "call_2" })],
    ];
    const items = assembleContext({ history, input, steps });
    expect(items.slice(0, 4)).toEqual([...history, ...input, ...steps]);
    expect(items[4]).toMatchObject({ type: "function_call_output", call_id: "call_2" });
  });
});
