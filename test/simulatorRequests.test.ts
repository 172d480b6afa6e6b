import OpenAI from "openai";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import {
  always,
  calls,
  fault,
  join,
  reasoning,
  startSimulator,
  text,
  when,
} from "../src/simulator/server.ts";
import type { Simulator } from "../src/simulator/server.ts";

let simulator: Simulator;
let client: OpenAI;

beforeAll(async () => {
  simulator = await startSimulator({ apiKey: "right", maxBodyBytes: 100_000 });
  client = new OpenAI({ baseURL: simulator.baseUrl, apiKey: "right", maxRetries: 0 });
});
afterEach(() => simulator.reset());
afterAll(() => simulator.close());

const model = "gpt-6-luna";
const call = { type: "function_call", call_id: "call_1", name: "add", arguments: "{}" } as const;
const output = { type: "function_call_output", call_id: "call_1", output: "3" } as const;
const question = { role: "user", content: "hi" } as const;

async function post(body: unknown): Promise<{ status: number; error: Record<string, unknown> }> {
  const response = await fetch(`${simulator.baseUrl}/responses`, {
    method: "POST",
    headers: { authorization: "Bearer right", "content-type": "application/json" },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  const { error } = (await response.json()) as { error: Record<string, unknown> };
  return { status: response.status, error };
}

describe("a request that the real API refuses is refused, and takes no step", () => {
  const reasoned = { type: "reasoning", id: "rs_1", summary: [], encrypted_content: "x" };
  const said = { type: "message", id: "msg_1", role: "assistant", content: "a" };
  const cases: [string, object, number, object][] = [
    ["no model", { input: "hi" }, 400, { code: "missing_required_parameter", param: "model" }],
    ["no input", { model }, 400, { code: "missing_required_parameter", param: "input" }],
    ["max_tokens", { model, input: "hi", max_tokens: 5 }, 400, { code: "unknown_parameter" }],
    [
      "conversation and previous response",
      { model, input: "hi", conversation: "conv_1", previous_response_id: "resp_1" },
      400,
      { code: "mutually_exclusive_parameters" },
    ],
    [
      "unknown previous response",
      { model, input: "hi", previous_response_id: "resp_1" },
      400,
      { code: "previous_response_not_found", param: "previous_response_id" },
    ],
    ["null as an item", { model, input: [null] }, 400, { code: "invalid_type", param: "input[0]" }],
    [
      "unknown item type",
      { model, input: [{ type: "thought" }] },
      400,
      { code: "invalid_value", param: "input[0].type" },
    ],
    [
      "unknown role",
      { model, input: [{ role: "tool", content: "hi" }] },
      400,
      { code: "invalid_value", param: "input[0].role" },
    ],
    [
      "call without output",
      { model, input: [question, call] },
      400,
      { message: "No tool output found for function call call_1.", param: "input" },
    ],
    [
      "output without call",
      { model, input: [question, output] },
      400,
      { message: "No tool call found for function call output with call_id call_1." },
    ],
    [
      "output before call",
      { model, input: [question, output, call] },
      400,
      { message: "No tool call found for function call output with call_id call_1." },
    ],
    [
      "duplicate ids",
      { model, input: [said, said] },
      400,
      { message: expect.stringContaining("Duplicate item found with id msg_1.") },
    ],
    [
      "reasoning without what it led to",
      { model, input: [question, reasoned] },
      400,
      { message: expect.stringContaining("without its required following item") },
    ],
    [
      "unknown reasoning item",
      { model, input: [{ ...reasoned, encrypted_content: undefined }, said] },
      404,
      { message: expect.stringContaining("Item with id 'rs_1' not found.") },
    ],
    [
      "unknown reference",
      { model, input: [{ type: "item_reference", id: "msg_9" }] },
      404,
      { message: expect.stringContaining("Item with id 'msg_9' not found.") },
    ],
    [
      "too few tokens",
      { model, input: "hi", max_output_tokens: 1 },
      400,
      { type: expect.any(String) },
    ],
    ["metadata that is no text", { model, input: "hi", metadata: { a: 1 } }, 400, {}],
    [
      "background that is not stored",
      { model, input: "hi", background: true, store: false },
      400,
      {},
    ],
  ];
  test.each(cases)("%s", async (_name, body, status, error) => {
    simulator.script(text("never"));
    const answer = await post(body);
    expect(answer.status).toBe(status);
    expect(answer.error).toMatchObject({ type: "invalid_request_error", ...error });
    expect(simulator.bill).toMatchObject([{ status: "rejected", responseId: null }]);
    expect(() => simulator.assertConsumed()).toThrow("unused step: answer");
  });

  test("bodies that are broken or too large", async () => {
    expect((await post("{")).status).toBe(400);
    expect((await post({ model, input: "x".repeat(100_001) })).status).toBe(413);
  });

  test("a key that is missing or wrong", async () => {
    const wrong = client.withOptions({ apiKey: "wrong" });
    await expect(wrong.responses.create({ model, input: "hi" })).rejects.toMatchObject({
      status: 401,
      code: "invalid_api_key",
    });
    expect((await fetch(`${simulator.baseUrl}/models`)).status).toBe(401);
  });

  test("an endpoint that does not exist", async () => {
    await expect(client.files.retrieve("file_1")).rejects.toThrow(OpenAI.NotFoundError);
  });
});

test("a chain by previous_response_id needs the outputs of the calls before", async () => {
  simulator.script(calls([{ name: "add", arguments: {}, callId: "call_1" }]), text("3"));
  const first = await client.responses.create({ model, input: "add" });
  const next = { model, previous_response_id: first.id };
  await expect(client.responses.create({ ...next, input: "well?" })).rejects.toThrow(
    "No tool output found for function call call_1.",
  );
  const second = await client.responses.create({ ...next, input: [output] });
  expect(second).toMatchObject({ output_text: "3", previous_response_id: first.id });
  expect(simulator.requests.at(-1)?.items.map((item) => item.type)).toEqual([
    "message",
    "function_call",
    "function_call_output",
  ]);
});

test("reasoning items can be sent back, by id if stored and encrypted if not", async () => {
  simulator.script(always(join(reasoning("hm"), text("yes"))));
  const include = ["reasoning.encrypted_content" as const];
  const stored = await client.responses.create({ model, input: "hi" });
  const unstored = await client.responses.create({ model, input: "hi", store: false });
  const encrypted = await client.responses.create({ model, input: "hi", store: false, include });
  const again = (output: OpenAI.Responses.ResponseOutputItem[]) =>
    client.responses.create({ model, input: [...(output as (typeof call)[]), question] });
  await again(stored.output);
  await again(encrypted.output);
  await expect(again(unstored.output)).rejects.toThrow(OpenAI.NotFoundError);
});

test("a conversation keeps what was said in it", async () => {
  simulator.script(text("one"), text("two"));
  await client.responses.create({ model, input: "first", conversation: "conv_1" });
  await client.responses.create({ model, input: "second", conversation: "conv_1" });
  expect(simulator.requests[1]?.items).toHaveLength(3);
});

test("a call without a step is answered with 500 once, and assertConsumed throws", async () => {
  const retrying = client.withOptions({ maxRetries: 2 });
  await expect(retrying.responses.create({ model, input: "hi" })).rejects.toThrow("no step");
  expect(simulator.requests).toHaveLength(1);
  expect(() => simulator.assertConsumed()).toThrow("no step for POST /v1/responses (request 0)");
});

test("steps with a match wait for their request; functions see it; always stays", async () => {
  simulator.script(
    when((request) => request.body.input === "b", text("for b")),
    (request) => text(`for ${request.body.input as string}`),
    always(text("for all")),
  );
  const texts: string[] = [];
  for (const input of ["a", "b", "c", "d"]) {
    texts.push((await client.responses.create({ model, input })).output_text);
  }
  expect(texts).toEqual(["for a", "for b", "for all", "for all"]);
  simulator.assertConsumed();
});

test("the bill has every call with its tokens, metadata and ending", async () => {
  simulator.script(
    text("Hello", {
      usage: { inputTokens: 100, cachedTokens: 40, cacheWriteTokens: 30, outputTokens: 20 },
    }),
    fault.rateLimit(),
    join(reasoning("think"), text("Hello")),
  );
  const create = (turn: string) =>
    client.responses.create({ model, input: "hi", metadata: { turn } }).catch(() => undefined);
  const first = await create("t1");
  expect(first?.usage).toMatchObject({
    input_tokens: 100,
    input_tokens_details: { cached_tokens: 40, cache_write_tokens: 30 },
    total_tokens: 120,
  });
  await create("t2");
  await create("t3");
  expect(simulator.bill).toMatchObject([
    {
      responseId: first?.id,
      model,
      status: "completed",
      inputTokens: 100,
      cachedTokens: 40,
      cacheWriteTokens: 30,
      outputTokens: 20,
      finalEventSent: true,
      metadata: { turn: "t1" },
    },
    { responseId: null, status: "rejected", outputTokens: 0, metadata: { turn: "t2" } },
    { status: "completed", outputTokens: 4, reasoningTokens: 2, metadata: { turn: "t3" } },
  ]);
  expect(simulator.bill.map((billed) => billed.requestId)).toEqual(
    simulator.requests.map((request) => request.requestId),
  );
});

test("input is cached as far as an earlier input is its prefix", async () => {
  simulator.script(always(text("Hello")));
  const ask = async (...contents: string[]) => {
    const input = contents.map((content) => ({ role: "user" as const, content }));
    const { usage } = await client.responses.create({ model, input });
    return usage?.input_tokens_details.cached_tokens;
  };
  const first = await ask("a".repeat(400));
  expect(first).toBe(0);
  const whole = simulator.bill[0]?.inputTokens;
  expect(await ask("a".repeat(400), "b")).toBe(whole);
  expect(await ask("c", "a".repeat(400))).toBe(0);
  expect(await ask("a".repeat(400), "c")).toBe(whole);
});

test("input tokens are counted as they will be billed", async () => {
  simulator.script(text("Hello"));
  const request = { model, input: "a question", instructions: "be brief" };
  const counted = await client.responses.inputTokens.count(request);
  const { usage } = await client.responses.create(request);
  expect(counted.input_tokens).toBe(usage?.input_tokens);
});

test("models are listed", async () => {
  const ids: string[] = [];
  for await (const one of client.models.list()) ids.push(one.id);
  expect(ids).toContain("gpt-6-luna");
});
