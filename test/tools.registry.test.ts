import { describe, expect, expectTypeOf, it } from "vitest";
import { z } from "zod";
import { defineTool } from "../src/tools/defineTool.ts";
import type { ToolDefinition, ToolSchema } from "../src/tools/defineTool.ts";
import { InvalidTool, createToolRegistry } from "../src/tools/registry.ts";

function toolOf(changes: Partial<ToolDefinition<ToolSchema>> = {}) {
  const parameters: ToolSchema = { type: "object", properties: {} };
  const handler = () => "done";
  return defineTool({ name: "a", description: "Does a.", parameters, handler, ...changes });
}

function reasonAgainst(changes: Partial<ToolDefinition<ToolSchema>>): string {
  try {
    createToolRegistry([toolOf(changes)]);
  } catch (error) {
    if (error instanceof InvalidTool) return error.message;
    throw error;
  }
  return "";
}

describe("a tool registry", () => {
  it("defines a JSON Schema tool for the model as it was written", () => {
    const parameters = { type: "object", properties: { n: { type: "number" } }, required: ["n"] };
    expect(createToolRegistry([toolOf({ parameters })]).definitionOf("a")).toEqual({
      type: "function",
      name: "a",
      description: "Does a.",
      parameters,
      strict: false,
    });
  });

  it("defines a zod tool by what the model has to send, defaults left out", () => {
    const parameters = z.object({ city: z.string().describe("Where"), days: z.int().default(1) });
    const shown = createToolRegistry([toolOf({ parameters })]).definitionOf("a").parameters;
    expect(shown).toMatchObject({
      type: "object",
      properties: { city: { type: "string", description: "Where" }, days: { default: 1 } },
      required: ["city"],
    });
    expect(shown).not.toHaveProperty("$schema");
  });

  it("infers the handler's arguments from zod", () => {
    defineTool({
      name: "a",
      description: "",
      parameters: z.object({ n: z.number(), text: z.string().default("") }),
      handler(args) {
        expectTypeOf(args).toEqualTypeOf<{ n: number; text: string }>();
      },
    });
    defineTool({
      name: "a",
      description: "",
      parameters: { type: "object" },
      handler(args) {
        expectTypeOf(args).toEqualTypeOf<Record<string, unknown>>();
      },
    });
  });

  it.each([[""], ["a b"], ["a.b"], ["ä"], ["x".repeat(65)]])("refuses the name %j", (name) => {
    expect(reasonAgainst({ name })).toContain(JSON.stringify(name));
  });

  it("refuses a name that is used twice", () => {
    expect(() => createToolRegistry([toolOf(), toolOf()])).toThrow(/"a": the name is used twice/);
  });

  it.each<[string, ToolSchema, RegExp]>([
    ["a wrong type", { type: "obiect" }, /"a": its parameters schema is invalid: .*type/],
    ["a reference to nowhere", { type: "object", $ref: "#/$defs/x" }, /#\/\$defs\/x/],
    ["a root that is no object", { type: "string" }, /must have "type": "object"/],
    ["an empty schema", {}, /must have "type": "object"/],
    ["a zod root that is no object", z.string(), /must have "type": "object"/],
    ["zod without a JSON form", z.object({ at: z.date() }), /Date/],
    [
      "an instance of another library",
      new (class {
        parse() {}
      })() as never,
      /neither a zod 4/,
    ],
    ["nothing", undefined as never, /no object/],
  ])("refuses %s", (_, parameters, reason) => {
    expect(reasonAgainst({ parameters })).toMatch(reason);
  });

  it("refuses a wrong result schema and names it", () => {
    expect(reasonAgainst({ result: { type: 5 } })).toMatch(/its result schema is invalid/);
  });

  it.each([0, -1, 1.5, Number.NaN, 2 ** 31])("refuses a timeout of %d ms", (timeoutMs) => {
    expect(reasonAgainst({ timeoutMs })).toMatch(/timeoutMs/);
  });

  it.each([
    ["draft 07", { $schema: "http://json-schema.org/draft-07/schema#", type: "object" }],
    ["draft 2020-12", { $schema: "https://json-schema.org/draft/2020-12/schema", type: "object" }],
    ["keywords and formats nobody knows", { type: "object", "x-order": 1, format: "future" }],
    ["an id", { type: "object", $id: "https://example.com/same" }],
  ])("takes schemas with %s, several times", (_, parameters) => {
    const tools = [toolOf({ parameters }), toolOf({ name: "b", parameters })];
    expect(createToolRegistry(tools).names).toEqual(["a", "b"]);
  });

  it("narrows to an agent's tools, and refuses names that it does not have", () => {
    const registry = createToolRegistry([toolOf(), toolOf({ name: "b" })]);
    const narrowed = registry.only(["b"]);
    expect(narrowed.names).toEqual(["b"]);
    expect(narrowed.get("a")).toBeUndefined();
    expect(() => registry.only(["b", "c"])).toThrow(/"c": it is not registered.*a, b/);
  });
});
