import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readConfig } from "../src/config.ts";
import { reachedLimit } from "../src/turn/budget.ts";
import { canonicalJson, contentHash } from "../src/turn/canonical.ts";
import { eventBody, parseEvent, recordedType } from "../src/turn/events.ts";
import { Refusal } from "../src/turn/failures.ts";
import { defaultTurnLimits } from "../src/turn/limits.ts";
import { closeOpenItems, partialAnswers } from "../src/turn/openItems.ts";
import { unansweredCalls } from "../src/turn/pairs.ts";
import { prepareTurn } from "../src/turn/prepare.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { checkRequest } from "../src/turn/request.ts";
import type { ResponseRequest } from "../src/turn/request.ts";
import { accumulate, deltaText, emit, scriptedItems } from "./setup/scriptedStreams.ts";

/** Any 16-bit units, so NUL and lone surrogates among them. */
const anyText = fc
  .array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 8 })
  .map((units) => String.fromCharCode(...units));
const json = fc.jsonValue({ maxDepth: 3, stringUnit: "binary" });

describe("closeOpenItems", () => {
  const cutStream = scriptedItems.chain((items) => {
    const { events } = emit(items);
    return fc.nat(events.length).map((length) => events.slice(0, length));
  });

  test("leaves no item open, wherever the stream was cut", () => {
    fc.assert(
      fc.property(cutStream, (prefix) => {
        const { events } = closeOpenItems(prefix);
        const whole = [...prefix, ...events];
        expect(closeOpenItems(whole)).toEqual({ events: [], output: [] });
        const items = accumulate(whole).output as { status?: string }[];
        expect(items.every((item) => ["completed", "incomplete"].includes(item.status ?? ""))).toBe(
          true,
        );
      }),
    );
  });

  test("has nothing to say of a stream that is whole", () => {
    fc.assert(
      fc.property(scriptedItems, (items) => {
        expect(closeOpenItems(emit(items).events)).toEqual({ events: [], output: [] });
      }),
    );
  });

  test("keeps exactly the text, arguments and citations that were streamed", () => {
    fc.assert(
      fc.property(cutStream, (prefix) => {
        for (const { index, item } of closeOpenItems(prefix).output) {
          const content = (item["content"] ?? []) as { type: string; text?: string }[];
          const text = content.map((part) => part.text ?? "").join("");
          const type = item["type"] === "reasoning" ? "reasoning_text" : "output_text";
          expect(text).toBe(deltaText(prefix, `response.${type}.delta`, index));
          if (item["type"] !== "function_call") continue;
          const argumentText = deltaText(prefix, "response.function_call_arguments.delta", index);
          expect(item["arguments"]).toBe(argumentText);
        }
      }),
    );
  });

  test("keeps the input of custom tools and of code, and a text that came only with its end", () => {
    const open = (index: number, type: string) => ({
      type: "response.output_item.added",
      output_index: index,
      item: { id: `id_${index}`, type, content: [] },
    });
    const at = (index: number) => ({ item_id: `id_${index}`, output_index: index });
    const { output } = closeOpenItems([
      open(0, "custom_tool_call"),
      { type: "response.custom_tool_call_input.delta", ...at(0), delta: "ls" },
      open(1, "code_interpreter_call"),
      { type: "response.code_interpreter_call_code.delta", ...at(1), delta: "1+1" },
      open(2, "message"),
      { type: "response.output_text.done", ...at(2), content_index: 0, text: "Hello" },
    ]);
    expect(output[0]?.item).toMatchObject({ input: "ls", status: "incomplete" });
    expect(output[1]?.item).toMatchObject({ code: "1+1", status: "incomplete" });
    expect(output[2]?.item).toMatchObject({ content: [{ type: "output_text", text: "Hello" }] });
  });

  test("of what it closed, only messages with text count as a partial answer", () => {
    fc.assert(
      fc.property(cutStream, (prefix) => {
        const closed = closeOpenItems(prefix);
        for (const entry of closed.output) {
          const text = deltaText(prefix, "response.output_text.delta", entry.index);
          expect(partialAnswers(closed).includes(entry)).toBe(text !== "");
        }
      }),
    );
  });
});

describe("canonicalJson", () => {
  function reversed(value: unknown): unknown {
    if (Array.isArray(value)) return value.map(reversed);
    if (value === null || typeof value !== "object") return value;
    const pairs = Object.entries(value).map(([key, inner]) => [key, reversed(inner)] as const);
    return Object.fromEntries(pairs.toReversed());
  }

  test("does not depend on the order of keys", () => {
    fc.assert(
      fc.property(json, (value) => {
        expect(canonicalJson(reversed(value))).toBe(canonicalJson(value));
        expect(contentHash(reversed(value))).toEqual(contentHash(value));
      }),
    );
  });

  test("differs where the values differ, and only there", () => {
    fc.assert(
      fc.property(json, json, (left, right) => {
        const asSent = (value: unknown): unknown => JSON.parse(JSON.stringify(value));
        const isSame = isDeepStrictEqual(asSent(left), asSent(right));
        expect(canonicalJson(left) === canonicalJson(right)).toBe(isSame);
        expect(JSON.parse(canonicalJson(left))).toEqual(asSent(left));
      }),
    );
  });
});

describe("checkRequest", () => {
  const agents = [defineAgent({ name: "default", model: "gpt-test" })];
  const fields = [
    "model input instructions conversation previous_response_id tools metadata background stream",
    "stream_options store user safety_identifier temperature",
  ]
    .join(" ")
    .split(" ");
  const item = fc.record(
    { type: json, role: json, content: json, id: json, call_id: json, name: json },
    { requiredKeys: [] },
  );
  const nearlyRight = fc.record(
    Object.fromEntries(fields.map((name) => [name, fc.oneof(json, fc.array(item), anyText)])),
    { requiredKeys: [] },
  );

  test("answers anything that is JSON with a request or a Refusal", () => {
    fc.assert(
      fc.property(fc.oneof(json, nearlyRight), (body) => {
        try {
          prepareTurn(body as ResponseRequest, agents);
        } catch (error) {
          expect(error).toBeInstanceOf(Refusal);
        }
      }),
      { numRuns: 500 },
    );
  });

  test("passes parameters that it does not know on as they are", () => {
    const unknown = fc
      .dictionary(
        fc.string().filter((name) => !fields.includes(name)),
        json.filter((value) => value !== null),
      )
      .map((parameters) => ({ ...parameters }));
    fc.assert(
      fc.property(unknown, (parameters) => {
        expect(checkRequest({ ...parameters, input: "Hi" }).parameters).toEqual(parameters);
      }),
    );
  });
});

describe("a recorded event", () => {
  const event = fc
    .tuple(
      fc.constantFrom("response.completed", "response.output_text.delta", "vendor.new"),
      fc.dictionary(fc.oneof(anyText, fc.nat(9).map(String)), fc.oneof(json, anyText)),
    )
    .map(([type, fields]) => ({ ...fields, type }));

  test("comes back as it was, whatever characters and field names it has", () => {
    fc.assert(
      fc.property(event, fc.nat(), (original, sequenceNumber) => {
        const body = eventBody(original);
        const { sequence_number: _own, ...sent } = original as { sequence_number?: unknown };
        const asSent = JSON.parse(JSON.stringify(sent)) as object;
        const { sequence_number, ...read } = parseEvent({
          sequenceNumber,
          body: eventBody(sent as never),
        });
        expect(sequence_number).toBe(sequenceNumber);
        expect(read).toEqual(asSent);
        expect(recordedType(body)).toBe(original.type);
        // PostgreSQL's text takes neither.
        expect(body.isWellFormed() && !body.includes("\0")).toBe(true);
      }),
    );
  });
});

test("an output answers only a call before it, because some providers repeat their call ids", () => {
  const call = { type: "function_call", id: "fc_1", call_id: "call_0", name: "f", arguments: "{}" };
  const output = { type: "function_call_output", id: "fco_1", call_id: "call_0", output: "1" };
  expect(unansweredCalls([output, call])).toEqual([{ type: "function_call", id: "call_0" }]);
  expect(unansweredCalls([call, output])).toEqual([]);
});

test("a turn's time is up once a step has ended in its last part, which is at most a quarter of it", () => {
  const duration = fc.integer({ min: 2, max: 10_000_000 });
  fc.assert(
    fc.property(
      duration,
      duration,
      fc.double({ min: 0, max: 1, noNaN: true }),
      (maxMs, keptMs, at) => {
        const limits = { ...defaultTurnLimits, maxTurnMs: maxMs, lastWordMs: keptMs };
        const admittedAt = new Date("2026-01-01T00:00:00Z").getTime();
        const turn = { limits, deadlineAt: new Date(admittedAt + maxMs) };
        const step = { items: [], finishedAt: new Date(admittedAt + Math.floor(maxMs * at)) };
        const leftMs = turn.deadlineAt.getTime() - step.finishedAt.getTime();
        const skewMs = 1_000;
        const isUp = leftMs - skewMs <= Math.min(keptMs, maxMs / 4);
        const reached = reachedLimit(turn, { tokens: 0, costUsd: 0 }, [step]);
        expect(reached).toBe(isUp ? "deadline" : null);
      },
    ),
  );
});

test("the configuration refuses a time that is too long for a timer", () => {
  const read = (ms: number) => readConfig({}, { TURNKEEPER_JANITOR_ROUND_MS: `${ms}` });
  expect(() => read(2 ** 31)).toThrow("TURNKEEPER_JANITOR_ROUND_MS");
  expect(read(2 ** 31 - 1).janitorRoundMs).toBe(2 ** 31 - 1);
});

describe("defineAgent", () => {
  test.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY])(
    "refuses a limit of %s",
    (limit) => {
      const define = () =>
        defineAgent({ name: "a", model: "gpt-test", limits: { maxSteps: limit } });
      expect(define).toThrow("maxSteps");
    },
  );

  test("refuses a limit that it does not know, and a time that is too long for a timer", () => {
    const define = (limits: object) => () => defineAgent({ name: "a", model: "gpt-test", limits });
    expect(define({ maxStep: 3 })).toThrow(
      "'maxStep' of agent 'a' is unknown. Known are: maxSteps",
    );
    expect(define({ idleTimeoutMs: 2 ** 31 })).toThrow(
      "'idleTimeoutMs' of agent 'a' must be at most",
    );
    expect(define({ idleTimeoutMs: 2 ** 31 - 1, maxOutputBytes: 2 ** 31 })).not.toThrow();
  });

  test("gives the same content the same version, and other content another one", () => {
    const one = defineAgent({
      name: "a",
      model: "gpt-test",
      parameters: { top_p: 1, store: true },
    });
    const same = defineAgent({
      name: "a",
      model: "gpt-test",
      parameters: { store: true, top_p: 1 },
    });
    const other = defineAgent({ name: "a", model: "gpt-test", instructions: "Be brief." });
    expect(same.version).toBe(one.version);
    expect(other.version).not.toBe(one.version);
  });
});
