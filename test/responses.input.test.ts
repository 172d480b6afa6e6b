import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { toModelInput } from "../src/responses/input.ts";
import type { Item } from "../src/turn/items.ts";

describe("what is sent of stored items", () => {
  it("leaves out ids that are ours", () => {
    const types = ["message", "function_call", "function_call_output", "custom_tool_call_output"];
    const items = types.map((type) => ({ type, id: "item_1", call_id: "call_1" }));
    expect(toModelInput(items)).toEqual(types.map((type) => ({ type, call_id: "call_1" })));
  });

  it("keeps the ids of reasoning and of hosted calls, which the provider needs back", () => {
    const items: Item[] = [
      { type: "reasoning", id: "rs_1", summary: [], encrypted_content: "abc" },
      { type: "web_search_call", id: "ws_1", status: "completed" },
      { type: "local_shell_call_output", id: "call_1", output: "" },
    ];
    expect(toModelInput(items)).toEqual(items);
  });

  it("drops reasoning that carries nothing, and the status of the rest", () => {
    const items: Item[] = [
      { type: "reasoning", id: "rs_1", summary: [{ type: "summary_text", text: "a" }] },
      { type: "reasoning", id: "rs_2", summary: [], encrypted_content: null, content: [] },
      { type: "reasoning", id: "rs_3", summary: [], status: "completed", content: [{ text: "t" }] },
    ];
    const kept = { type: "reasoning", id: "rs_3", summary: [], content: [{ text: "t" }] };
    expect(toModelInput(items)).toEqual([kept]);
  });

  it("drops what only outputs have, and leaves the stored items as they are", () => {
    const part = { type: "output_text", text: "{}", annotations: [], parsed: {} };
    const items: Item[] = [
      { type: "message", id: "m", role: "assistant", status: "completed", content: [part] },
      { type: "function_call", id: "f", name: "n", arguments: "{}", parsed_arguments: {} },
      { type: "shell_call", id: "s", created_by: "user" },
    ];
    const before = structuredClone(items);
    expect(toModelInput(items)).toEqual([
      {
        type: "message",
        role: "assistant",
        status: "completed",
        content: [{ type: "output_text", text: "{}", annotations: [] }],
      },
      { type: "function_call", name: "n", arguments: "{}" },
      { type: "shell_call" },
    ]);
    expect(items).toEqual(before);
  });

  it("passes unknown types through", () => {
    const item = { type: "future_item", id: "fut_1", anything: { goes: true } };
    expect(toModelInput([item])).toEqual([item]);
  });

  it("keeps what was sent a prefix of what is sent next [10]", () => {
    const type = fc.constantFrom("message", "function_call", "reasoning", "mcp_call", "other");
    const item = fc.record({
      type,
      id: fc.string(),
      encrypted_content: fc.option(fc.string()),
      content: fc.option(fc.array(fc.record({ text: fc.string(), parsed: fc.anything() }))),
    });
    fc.assert(
      fc.property(fc.array(item), fc.array(item), (before, added) => {
        const sent = JSON.stringify(toModelInput(before)).slice(0, -1);
        expect(JSON.stringify(toModelInput([...before, ...added])).startsWith(sent)).toBe(true);
      }),
    );
  });
});
