import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { cutToBytes } from "../src/tools/cut.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import type { ToolContext, ToolDefinition, ToolSchema } from "../src/tools/defineTool.ts";
import { createToolRegistry } from "../src/tools/registry.ts";
import { runTool } from "../src/tools/run.ts";
import type { ToolRun, ToolResult } from "../src/tools/run.ts";

function run(
  changes: Partial<ToolDefinition<ToolSchema>> = {},
  call: Partial<ToolRun> = {},
): Promise<ToolResult> {
  const parameters: ToolSchema = { type: "object" };
  const handler = () => "done";
  const tool = defineTool({ name: "a", description: "", parameters, handler, ...changes });
  return runTool(createToolRegistry([tool]), {
    name: "a",
    arguments: "{}",
    callId: "call_1",
    turnId: "resp_1",
    project: "p",
    idempotencyKey: "key_1",
    signal: new AbortController().signal,
    maxResultBytes: 1_000,
    ...call,
  });
}

function errorOf(outcome: ToolResult): { type: string; message: string } {
  return (JSON.parse(outcome.output) as { error: { type: string; message: string } }).error;
}

const aborted = (signal: AbortSignal) =>
  new Promise<void>((done) => signal.addEventListener("abort", () => done()));

describe("the arguments of a call", () => {
  const strictObject = {
    type: "object",
    properties: {
      unit: { enum: ["C", "F"] },
      places: { type: "array", items: { type: "object", required: ["name"] } },
    },
    additionalProperties: false,
  };

  it.each([
    ["{", /not valid JSON/],
    ['{"unit": "K"}', /\/unit must be equal to one of the allowed values: \["C","F"\]/],
    ['{"places": [{"name": 1}, {}]}', /\/places\/1 must have required property 'name'/],
    ['{"places": 5}', /\/places must be array/],
    ['{"city": "x"}', /must NOT have additional properties: "city"/],
    ["[]", /the value must be object/],
    ["null", /the value must be object/],
  ])("are refused with the field that is wrong: %s", async (text, message) => {
    let ran = false;
    const handler = () => (ran = true);
    const outcome = await run({ parameters: strictObject, handler }, { arguments: text });
    expect(outcome.outcome).toBe("not_run");
    expect(errorOf(outcome).type).toBe("invalid_arguments");
    expect(errorOf(outcome).message).toMatch(message);
    expect(ran).toBe(false);
  });

  it("are checked by zod itself, and named", async () => {
    const parameters = z.object({ list: z.array(z.object({ n: z.number() })) });
    const outcome = await run({ parameters }, { arguments: '{"list": [{"n": "1"}]}' });
    expect(errorOf(outcome)).toMatchObject({ type: "invalid_arguments" });
    expect(errorOf(outcome).message).toContain("/list/0/n");
  });

  it("survive a check that throws", async () => {
    const refuse = () => {
      throw new Error("no luck");
    };
    const outcome = await run({ parameters: z.object({}).refine(refuse) });
    expect(errorOf(outcome)).toMatchObject({ type: "invalid_arguments" });
  });

  it("reach the handler as zod made them, with what identifies the call", async () => {
    let seen: unknown[] = [];
    const parameters = z.object({ n: z.number().default(3) });
    const handler = (...args: unknown[]) => (seen = args) && "ok";
    await run({ parameters, handler });
    expect(seen[0]).toEqual({ n: 3 });
    expect(seen[1]).toMatchObject({
      idempotencyKey: "key_1",
      turnId: "resp_1",
      callId: "call_1",
      project: "p",
    });
  });

  it.each(["", "  "])("may be empty text for a function without any: %j", async (text) => {
    expect(await run({}, { arguments: text })).toEqual({ outcome: "ok", output: "done" });
  });

  it("do not make a call of an unknown tool throw", async () => {
    const outcome = await run({}, { name: "b" });
    expect(outcome.outcome).toBe("not_run");
    expect(errorOf(outcome)).toEqual({
      type: "unknown_tool",
      message: "There is no such tool. Available: a.",
    });
  });
});

describe("the result of a tool", () => {
  it.each([
    ["text", "text"],
    ["", ""],
    [{ a: [1] }, '{"a":[1]}'],
    [null, "null"],
    [0, "0"],
    ["a\u0000b\ud800c", "a\u0000b\ud800c"],
    [new Date(0), '"1970-01-01T00:00:00.000Z"'],
  ])("%j is handed to the model as %j", async (result, output) => {
    expect(await run({ handler: async () => result })).toEqual({ outcome: "ok", output });
  });

  const circular: Record<string, unknown> = {};
  circular["self"] = circular;

  it.each([
    ["undefined", undefined],
    ["a function", () => 1],
    ["a symbol", Symbol("s")],
    ["a BigInt", 1n],
    ["a circle", circular],
    ["a BigInt inside", { n: 1n }],
  ])("is an error that says the tool ran when it is no JSON: %s", async (_, result) => {
    const outcome = await run({ handler: () => result });
    expect(outcome.outcome).toBe("error");
    expect(errorOf(outcome).type).toBe("invalid_result");
    expect(errorOf(outcome).message).toMatch(/^The tool ran, but its result is not JSON/);
  });

  it.each<[string, ToolSchema, unknown, boolean]>([
    ["JSON Schema", { type: "object", required: ["n"] }, { n: 1 }, true],
    ["JSON Schema", { type: "object", required: ["n"] }, {}, false],
    ["JSON Schema, of the JSON", { type: "string" }, new Date(0), true],
    ["zod", z.object({ n: z.number() }), { n: 1 }, true],
    ["zod", z.object({ n: z.number() }), { n: "1" }, false],
  ])("is held against its schema: %s", async (_, result, value, fits) => {
    const outcome = await run({ result, handler: () => value });
    expect(outcome.outcome).toBe(fits ? "ok" : "error");
    if (!fits) expect(errorOf(outcome).message).toMatch(/\/n|'n'/);
  });

  it("of a hundred megabytes is cut, and says so", async () => {
    const outcome = await run({ handler: () => "é".repeat(50_000_000) }, { maxResultBytes: 1_001 });
    expect(outcome.outcome).toBe("ok");
    expect(Buffer.byteLength(outcome.output)).toBeLessThanOrEqual(1_001);
    expect(outcome.output).toMatch(/é\n\[The result was cut: it has 100000000 bytes/);
  });

  it("is cut at a character, never over the limit, and left alone below it", () => {
    const text = fc.string({ unit: "grapheme", minLength: 0, maxLength: 400 });
    fc.assert(
      fc.property(text, fc.integer({ min: 100, max: 600 }), (whole, maxBytes) => {
        const cut = cutToBytes(whole, maxBytes);
        if (Buffer.byteLength(whole) <= maxBytes) {
          expect(cut).toBe(whole);
          return;
        }
        expect(Buffer.byteLength(cut)).toBeLessThanOrEqual(maxBytes);
        const shown = cut.slice(0, cut.lastIndexOf("\n["));
        expect(whole.startsWith(shown)).toBe(true);
        expect(shown.isWellFormed()).toBe(whole.isWellFormed());
      }),
    );
  });

  it("keeps lone surrogates when it is cut", () => {
    expect(cutToBytes("\ud800".repeat(200), 130).startsWith("\ud800".repeat(5))).toBe(true);
  });
});

describe("a handler that goes wrong", () => {
  it.each([
    ["an error", new Error("no\n  such\tcity"), "no such city"],
    ["text", "plain", "plain"],
    ["nothing", undefined, "undefined"],
    ["an object without a form", Object.create(null), "The tool failed without a message."],
  ])("by throwing %s tells the model in one line, without a stack", async (_, thrown, message) => {
    const handler = () => {
      throw thrown;
    };
    const outcome = await run({ handler });
    expect(outcome.outcome).toBe("error");
    expect(errorOf(outcome)).toEqual({ type: "tool_error", message });
  });

  it("with a message of any length is bounded", async () => {
    const outcome = await run({ handler: () => Promise.reject(new Error("x".repeat(1e6))) });
    expect(outcome.output.length).toBeLessThan(1_200);
  });

  it("by hanging is stopped: its signal aborts, and the model learns that nobody knows", async () => {
    let context: ToolContext | undefined;
    const handler = (_: unknown, given: ToolContext) => {
      context = given;
      return new Promise(() => undefined);
    };
    const outcome = await run({ handler, timeoutMs: 30 });
    expect(outcome.outcome).toBe("unknown");
    expect(errorOf(outcome).type).toBe("timeout");
    expect(errorOf(outcome).message).toMatch(/30 ms.*unknown/);
    expect(context?.signal.aborted).toBe(true);
  });

  it("by failing because it was stopped is still a timeout", async () => {
    const handler = async (_: unknown, { signal }: ToolContext) => {
      await aborted(signal);
      throw signal.reason;
    };
    expect((await run({ handler, timeoutMs: 30 })).outcome).toBe("unknown");
  });

  it("by failing after it was stopped disturbs nobody", async () => {
    const late = Promise.withResolvers<void>();
    const handler = async (_: unknown, { signal }: ToolContext) => {
      await aborted(signal);
      setImmediate(late.resolve);
      await late.promise;
      throw new Error("too late");
    };
    expect((await run({ handler, timeoutMs: 10 })).outcome).toBe("unknown");
    await late.promise;
  });
});

describe("a call that its caller stops", () => {
  it("is aborted at once, its handler too", async () => {
    const controller = new AbortController();
    let signal: AbortSignal | undefined;
    const handler = (_: unknown, context: ToolContext) => {
      ({ signal } = context);
      queueMicrotask(() => controller.abort());
      return new Promise(() => undefined);
    };
    const outcome = await run({ handler }, { signal: controller.signal });
    expect(outcome.outcome).toBe("unknown");
    expect(errorOf(outcome).message).toContain("unknown");
    expect(signal?.aborted).toBe(true);
  });

  it("does not begin when it is stopped before", async () => {
    let ran = false;
    const outcome = await run({ handler: () => (ran = true) }, { signal: AbortSignal.abort() });
    expect(outcome.outcome).toBe("not_run");
    expect(ran).toBe(false);
  });
});
