import { Ajv } from "ajv";
import fc from "fast-check";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { instanceOf, readHints } from "../src/simulator/instance.ts";
import type { Schema } from "../src/simulator/instance.ts";
import { startSimulator } from "../src/simulator/server.ts";
import type { Simulator } from "../src/simulator/server.ts";

let simulator: Simulator;
let client: OpenAI;

beforeAll(async () => {
  simulator = await startSimulator({ mode: "friendly", deltaDelayMs: 0 });
  client = new OpenAI({ baseURL: simulator.baseUrl, apiKey: "any", maxRetries: 0 });
});
afterAll(() => simulator.close());

const model = "gpt-6-luna";
const NOTE = "(simulated answer; set OPENAI_API_KEY for a real model)";

describe("simple requests are followed, and every answer says once that it is simulated", () => {
  const cases: [string, string | RegExp][] = [
    ["Say hello world", "hello world"],
    ["Please repeat exactly: a, b and c", "a, b and c"],
    ['Reply with "pong".', "pong"],
    ["Count to 5", "1, 2, 3, 4, 5"],
    ["count from 3 to 6 please", "3, 4, 5, 6"],
    ["What is 12 times 3?", "36"],
    ["Add 2, 3 and 4.5", "9.5"],
    ["what is 10 - 4", "6"],
    ["multiply 6 by 7", "42"],
    ["What is the date today?", /^It is 2\d{3}-/],
    ["Tell me a joke", /workflow/],
    ["Write a haiku about the sea", /the sea/],
    ["List 4 kinds of tea", /^1\. .*\n2\. .*\n3\. .*\n4\. .*tea/],
    ["Hello!", /^Hello/],
    ["Explain entropy", "You asked: Explain entropy"],
  ];
  test.each(cases)("%s", async (input, expected) => {
    const { output_text } = await client.responses.create({ model, input });
    expect(output_text.split(NOTE)).toHaveLength(2);
    const reply = output_text.replace(NOTE, "").trim();
    if (typeof expected === "string") expect(reply).toBe(expected);
    else expect(reply).toMatch(expected);
  });
});

test("it remembers what was said earlier in the chain", async () => {
  const first = await client.responses.create({ model, input: "Hi, my name is Ada." });
  expect(first.output_text).toContain("Nice to meet you, Ada.");
  const name = await client.responses.create({
    model,
    input: "What is my name?",
    previous_response_id: first.id,
  });
  expect(name.output_text).toContain("Your name is Ada.");
  const said = await client.responses.create({
    model,
    input: "What did I say before?",
    previous_response_id: name.id,
  });
  expect(said.output_text).toContain("You said: What is my name?");
});

test("it answers from what the developer gave it to know", async () => {
  const { output_text } = await client.responses.create({
    model,
    instructions: "You help with questions about refunds.\nRefunds are paid within 14 days.",
    input: "When are refunds paid?",
  });
  expect(output_text).toContain("Refunds are paid within 14 days.");
});

const weather = {
  type: "function" as const,
  name: "get_weather",
  description: "Current temperature in a city.",
  strict: true,
  parameters: {
    type: "object",
    properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
    required: ["city", "unit"],
    additionalProperties: false,
  },
};
const add = {
  ...weather,
  name: "add",
  description: "Adds two numbers.",
  parameters: {
    type: "object",
    properties: { a: { type: "number" }, b: { type: "number" } },
    required: ["a", "b"],
    additionalProperties: false,
  },
};

test("it calls the tool that fits, with arguments from the message, and uses its output", async () => {
  const tools = [add, weather];
  const asked = "What's the weather in Paris, in fahrenheit?";
  const first = await client.responses.create({ model, tools, input: asked });
  const call = first.output[0];
  if (call?.type !== "function_call") throw new Error("no call");
  expect(call.name).toBe("get_weather");
  expect(JSON.parse(call.arguments)).toEqual({ city: "Paris", unit: "fahrenheit" });
  const second = await client.responses.create({
    model,
    tools,
    previous_response_id: first.id,
    input: [{ type: "function_call_output", call_id: call.call_id, output: '{"degrees":71}' }],
  });
  expect(second.output_text).toContain('get_weather answered: {"degrees":71}');
  expect(second.output_text).toContain(NOTE);
});

test("it leaves tools alone that do not fit or are forbidden, and calls one that is required", async () => {
  const create = (input: string, tool_choice?: "none" | "required") =>
    client.responses.create({
      model,
      tools: [weather, add],
      input,
      ...(tool_choice && { tool_choice }),
    });
  expect((await create("Tell me a joke")).output_text).toContain(NOTE);
  expect((await create("weather in Rome", "none")).output_text).toContain(NOTE);
  expect((await create("Tell me a joke", "required")).output[0]?.type).toBe("function_call");
  const sum = (await create("add 4 and 38")).output[0];
  expect(sum).toMatchObject({ name: "add", arguments: '{"a":4,"b":38}' });
});

test("a JSON schema is answered with an instance of it", async () => {
  const node = { type: "object", properties: { name: { type: "string", minLength: 30 } } };
  const schema = {
    type: "object",
    $defs: {
      tree: {
        ...node,
        properties: {
          ...node.properties,
          children: { type: "array", items: { $ref: "#/$defs/tree" } },
        },
        required: ["name", "children"],
      },
    },
    properties: {
      title: { type: ["string", "null"], maxLength: 10 },
      score: { type: "integer", minimum: 3, maximum: 9, multipleOf: 2 },
      kind: { enum: ["alpha", "beta"] },
      fixed: { const: 7 },
      either: { anyOf: [{ type: "null" }, { type: "boolean" }] },
      day: { type: "string" },
      tree: { $ref: "#/$defs/tree" },
      tags: { type: "array", items: { type: "string" }, minItems: 2 },
    },
    required: ["title", "score", "kind", "fixed", "either", "day", "tree", "tags"],
    additionalProperties: false,
  };
  const { output_text } = await client.responses.create({
    model,
    input: "Describe beta with 1000 words",
    text: { format: { type: "json_schema", name: "thing", schema } },
  });
  const validate = new Ajv({ strict: false }).compile(schema);
  const value: unknown = JSON.parse(output_text);
  validate(value);
  expect(validate.errors).toBeNull();
  expect(value).toMatchObject({ kind: "beta" });
});

test("any schema of the usual keywords gets an instance that is valid", () => {
  const leaf = fc.oneof(
    fc.record({ type: fc.constant("string"), minLength: fc.nat(40) }),
    fc.record({ type: fc.constant("string"), maxLength: fc.nat(40) }),
    fc
      .tuple(fc.integer({ min: -99, max: 99 }), fc.integer({ min: 9, max: 99 }), fc.nat({ max: 8 }))
      .map(([minimum, width, step]) => ({
        type: "integer",
        minimum,
        maximum: minimum + width,
        multipleOf: step + 1,
      })),
    fc.record({ type: fc.constantFrom("boolean", "null", "number") }),
    fc.record({ enum: fc.uniqueArray(fc.oneof(fc.string(), fc.integer()), { minLength: 1 }) }),
    fc.record({ const: fc.oneof(fc.string(), fc.integer()) }),
  );
  const { schema } = fc.letrec<{ schema: object }>((tie) => ({
    schema: fc.oneof(
      { maxDepth: 4, withCrossShrink: true },
      leaf,
      fc.record({ type: fc.constant("array"), items: tie("schema"), minItems: fc.nat(3) }),
      fc.record({ anyOf: fc.array(tie("schema"), { minLength: 1, maxLength: 3 }) }),
      fc
        .dictionary(fc.constantFrom("a", "b", "c", "d"), tie("schema"))
        .map((properties) => ({ type: "object", properties, required: Object.keys(properties) })),
    ),
  }));
  fc.assert(
    fc.property(schema, fc.string(), (one, message) => {
      const ajv = new Ajv({ strict: false });
      expect(ajv.validate(one, instanceOf(one as Schema, readHints(message)))).toBe(true);
    }),
  );
});

test("it streams word by word", async () => {
  const deltas: string[] = [];
  for await (const event of await client.responses.create({
    model,
    input: "Count to 3",
    stream: true,
  })) {
    if (event.type === "response.output_text.delta") deltas.push(event.delta);
  }
  expect(deltas.slice(0, 4)).toEqual(["1,", " 2,", " 3", "\n\n(simulated"]);
});
