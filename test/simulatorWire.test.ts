import OpenAI from "openai";
import type { ResponseStreamEvent } from "openai/resources/responses/responses";
import { expect, test } from "vitest";
import {
  calls,
  gate,
  hostedCall,
  join,
  reasoning,
  refusal,
  text,
} from "../src/simulator/server.ts";
import { useSimulator } from "./setup/useSimulator.ts";

const { simulator, client } = await useSimulator();

const model = "gpt-6-luna";
const everything = () =>
  join(
    reasoning(["Let me think.", "And again."], { content: "raw thoughts" }),
    hostedCall("weather in Paris"),
    text("It rains in Paris.", {
      annotations: [
        { type: "url_citation", url: "https://x.y", title: "t", start_index: 0, end_index: 2 },
      ],
    }),
    calls([{ name: "add", arguments: { a: 1, b: 2 }, callId: "call_1" }]),
  );

async function collect(stream: AsyncIterable<ResponseStreamEvent>): Promise<ResponseStreamEvent[]> {
  const events: ResponseStreamEvent[] = [];
  for await (const event of stream) events.push(event);
  return events;
}

/** Fields of each event besides `type` and `sequence_number`, as openai 7.57.0 declares them. */
const CONTENT = "item_id output_index content_index";
const SUMMARY = "item_id output_index summary_index";
const REQUIRED: Record<string, string> = {
  "response.created": "response",
  "response.queued": "response",
  "response.in_progress": "response",
  "response.completed": "response",
  "response.output_item.added": "item output_index",
  "response.output_item.done": "item output_index",
  "response.content_part.added": `${CONTENT} part`,
  "response.content_part.done": `${CONTENT} part`,
  "response.output_text.delta": `${CONTENT} delta logprobs`,
  "response.output_text.annotation.added": `${CONTENT} annotation annotation_index`,
  "response.output_text.done": `${CONTENT} text logprobs`,
  "response.refusal.delta": `${CONTENT} delta`,
  "response.refusal.done": `${CONTENT} refusal`,
  "response.function_call_arguments.delta": "item_id output_index delta",
  "response.function_call_arguments.done": "item_id output_index arguments name",
  "response.reasoning_summary_part.added": `${SUMMARY} part`,
  "response.reasoning_summary_part.done": `${SUMMARY} part`,
  "response.reasoning_summary_text.delta": `${SUMMARY} delta`,
  "response.reasoning_summary_text.done": `${SUMMARY} text`,
  "response.reasoning_text.delta": `${CONTENT} delta`,
  "response.reasoning_text.done": `${CONTENT} text`,
  "response.web_search_call.in_progress": "item_id output_index",
  "response.web_search_call.searching": "item_id output_index",
  "response.web_search_call.completed": "item_id output_index",
};

const RESPONSE_FIELDS = `id access_programs created_at completed_at error incomplete_details
  instructions metadata model object output parallel_tool_calls temperature tool_choice tools top_p
  background max_output_tokens max_tool_calls previous_response_id prompt_cache_key reasoning
  safety_identifier service_tier status store text top_logprobs truncation usage`.split(/\s+/);

test("every event has the fields of its type, and numbers from 0 without gaps", async () => {
  simulator.script(everything(), refusal("No, I will not."), text("Later."));
  const include = ["reasoning.encrypted_content" as const];
  const streams = [
    await collect(await client.responses.create({ model, input: "1", stream: true, include })),
    await collect(await client.responses.create({ model, input: "2", stream: true })),
    await collect(
      await client.responses.create({ model, input: "3", stream: true, background: true }),
    ),
  ];
  for (const events of streams) {
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index));
    for (const event of events) {
      const wanted = ["type", "sequence_number", ...REQUIRED[event.type]!.split(" ")];
      expect(Object.keys(event).sort()).toEqual(wanted.sort());
      if ("response" in event)
        expect(Object.keys(event.response)).toEqual(expect.arrayContaining(RESPONSE_FIELDS));
    }
  }
  const seen = new Set(streams.flat().map((event) => event.type as string));
  expect([...seen].sort()).toEqual(Object.keys(REQUIRED).sort());
});

test("the events of a message come in the real order, and add up to the final response", async () => {
  simulator.script(text("Hello big world"));
  const events = await collect(await client.responses.create({ model, input: "hi", stream: true }));
  expect(events.map((event) => event.type.replace("response.", ""))).toEqual([
    "created",
    "in_progress",
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.delta",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
    "completed",
  ]);
  const last = events.at(-1);
  if (last?.type !== "response.completed") throw new Error("no terminal event");
  expect(last.response.id).toMatch(/^resp_[0-9a-f]{48,}$/);
  expect(last.response.output[0]).toMatchObject({
    id: expect.stringMatching(/^msg_[0-9a-f]{48,}$/),
    status: "completed",
    content: [{ type: "output_text", text: "Hello big world" }],
  });
  expect(last.response.usage).toEqual({
    input_tokens: 2,
    input_tokens_details: { cached_tokens: 0, cache_write_tokens: 0 },
    output_tokens: 5,
    output_tokens_details: { reasoning_tokens: 0 },
    total_tokens: 7,
  });
});

test("the stream helper's final response has what was streamed", async () => {
  simulator.script(everything(), refusal("No, I will not."));
  const final = await client.responses.stream({ model, input: "hi" }).finalResponse();
  expect(final.output_text).toBe("It rains in Paris.");
  expect(final.output.map((item) => item.type)).toEqual([
    "reasoning",
    "web_search_call",
    "message",
    "function_call",
  ]);
  expect(final.output[3]).toMatchObject({ call_id: "call_1", arguments: '{"a":1,"b":2}' });
  const refused = await client.responses.stream({ model, input: "hi" }).finalResponse();
  expect(refused.output[0]).toMatchObject({
    content: [{ type: "refusal", refusal: "No, I will not." }],
  });
});

test("the same answer comes without a stream, with the headers of the real API", async () => {
  simulator.script(text("Hello"));
  const { data, response } = await client.responses
    .create({ model, input: "hi", metadata: { turn: "t1" } })
    .withResponse();
  expect(data).toMatchObject({
    output_text: "Hello",
    status: "completed",
    metadata: { turn: "t1" },
  });
  expect(response.headers.get("x-request-id")).toMatch(/^req_/);
  expect(response.headers.get("openai-processing-ms")).toMatch(/^\d+$/);
  expect(response.headers.get("x-ratelimit-remaining-tokens")).toMatch(/^\d+$/);
});

test("encrypted reasoning comes only where include asks for it", async () => {
  simulator.script(join(reasoning("hm"), text("a")), join(reasoning("hm"), text("b")));
  const include = ["reasoning.encrypted_content" as const];
  const asked = await client.responses.create({ model, input: "hi", include });
  expect(asked.output[0]).toMatchObject({ encrypted_content: expect.any(String) });
  const plain = await client.responses.create({ model, input: "hi" });
  expect(plain.output[0]).not.toHaveProperty("encrypted_content");
});

test("NUL and lone surrogates arrive as they were written", async () => {
  const odd = "a\u0000b\ud800c";
  simulator.script(text("", { deltas: [odd] }));
  expect((await client.responses.create({ model, input: odd })).output_text).toBe(odd);
  expect(simulator.requests[0]?.body.input).toBe(odd);
});

test("a script can leave out what other servers leave out", async () => {
  simulator.script(text("Hello", { omit: ["sequence_number", "usage"] }));
  const events = await collect(await client.responses.create({ model, input: "hi", stream: true }));
  expect(events.every((event) => event.sequence_number === undefined)).toBe(true);
  expect(events.at(-1)).toMatchObject({ response: { usage: null } });
});

test("a gate holds the stream after its deltas until the test opens it", async () => {
  const held = gate(2);
  simulator.script(text("one two three", { pauseAfter: held }));
  const stream = await client.responses.create({ model, input: "hi", stream: true });
  await held.reached;
  expect(simulator.connections()).toBe(1);
  expect(simulator.bill[0]).toMatchObject({ status: "in_progress", outputTokens: 2 });
  held.open();
  expect((await collect(stream)).at(-1)?.type).toBe("response.completed");
  await simulator.waitFor("closed");
  expect(simulator.connections()).toBe(0);
});

test("a gate before the headers holds the answer back", async () => {
  const held = gate("headers");
  simulator.script(text("late", { pauseAfter: held }));
  const answer = client.responses.create({ model, input: "hi" });
  await held.reached;
  expect(simulator.bill[0]?.responseId).toBeNull();
  held.open();
  expect((await answer).output_text).toBe("late");
});

test("a client that leaves at the headers' gate is billed nothing", async () => {
  const held = gate("headers");
  simulator.script(text("never", { pauseAfter: held }));
  const controller = new AbortController();
  const answer = client.responses.create({ model, input: "hi" }, { signal: controller.signal });
  await held.reached;
  controller.abort();
  await expect(answer).rejects.toThrow(OpenAI.APIUserAbortError);
  expect(await simulator.waitFor("aborted")).toMatchObject({ inputTokens: 0, outputTokens: 0 });
});

test("occurrences that came before a waiter are handed out once, in order", async () => {
  simulator.script(text("a"), text("b"));
  await client.responses.create({ model, input: "1" });
  await client.responses.create({ model, input: "2" });
  expect((await simulator.waitFor("request")).body.input).toBe("1");
  expect((await simulator.waitFor("request")).body.input).toBe("2");
  expect((await simulator.waitFor("delta", (delta) => delta.text === "b")).count).toBe(1);
});

test("reset cuts off what is running and forgets everything", async () => {
  const held = gate(1);
  simulator.script(text("one two", { pauseAfter: held }), text("unused"));
  const stream = await client.responses.create({ model, input: "hi", stream: true });
  await held.reached;
  simulator.reset();
  await expect(collect(stream)).rejects.toThrow("terminated");
  expect([simulator.bill, simulator.requests]).toEqual([[], []]);
  expect(simulator.connections()).toBe(0);
});

test("delays hold back the first delta and the ones after it", async () => {
  simulator.script(text("a b c", { firstDelayMs: 40, deltaDelayMs: 20 }));
  const startedAt = performance.now();
  await client.responses.create({ model, input: "hi" });
  // A lower bound only: a slow machine cannot break it.
  expect(performance.now() - startedAt).toBeGreaterThan(75);
});
