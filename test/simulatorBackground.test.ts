import OpenAI from "openai";
import type { ResponseStreamEvent } from "openai/resources/responses/responses";
import { expect, test } from "vitest";
import { fault, gate, text } from "../src/simulator/server.ts";
import { useSimulator } from "./setup/useSimulator.ts";

const { simulator, client } = await useSimulator();

const request = { model: "gpt-6-luna", input: "hi" };
const WORDS = "one two three four five six seven eight";

/** Reads until the stream ends or breaks. */
async function readAll(stream: AsyncIterable<ResponseStreamEvent>): Promise<ResponseStreamEvent[]> {
  const events: ResponseStreamEvent[] = [];
  try {
    for await (const event of stream) events.push(event);
  } catch {
    return events;
  }
  return events;
}

test("a broken background stream goes on, and is resumed without a gap or a repetition", async () => {
  const held = gate(5);
  simulator.script(fault.reset(3, text(WORDS, { pauseAfter: held })));
  const first = await readAll(
    await client.responses.create({ ...request, background: true, stream: true }),
  );
  expect(first.map((event) => event.type).slice(0, 3)).toEqual([
    "response.created",
    "response.queued",
    "response.in_progress",
  ]);
  await held.reached;
  const created = first[0];
  if (created?.type !== "response.created") throw new Error("no response");
  const { id } = created.response;
  const starting_after = first.at(-1)!.sequence_number;
  const resumed = await client.responses.retrieve(id, { stream: true, starting_after });
  held.open();
  const rest = await readAll(resumed);
  const numbers = [...first, ...rest].map((event) => event.sequence_number);
  expect(numbers).toEqual(numbers.map((_, index) => index));
  expect(rest.at(-1)).toMatchObject({ type: "response.completed" });
  const stored = await client.responses.retrieve(id);
  expect(stored).toMatchObject({ status: "completed", output_text: WORDS, background: true });
  expect(simulator.bill).toMatchObject([{ responseId: id, status: "completed", aborted: false }]);
});

test("the stream helper reads a finished background response from its start", async () => {
  simulator.script(text(WORDS));
  const { id } = await client.responses.stream({ ...request, background: true }).finalResponse();
  const again = client.responses.stream({ response_id: id, starting_after: 5 });
  expect((await again.finalResponse()).output_text).toBe(WORDS);
});

test("a background response without a stream is queued, then polled", async () => {
  const held = gate(2);
  simulator.script(text(WORDS, { pauseAfter: held }));
  const queued = await client.responses.create({ ...request, background: true });
  expect(queued).toMatchObject({ status: "queued", output: [] });
  await held.reached;
  expect((await client.responses.retrieve(queued.id)).status).toBe("in_progress");
  held.open();
  await simulator.waitFor("finished");
  expect((await client.responses.retrieve(queued.id)).output_text).toBe(WORDS);
  await expect(client.responses.retrieve(queued.id, { stream: true })).rejects.toThrow(
    "cannot be streamed",
  );
});

test("a stream that is too old can only be polled", async () => {
  simulator.script(text(WORDS));
  const { id } = await client.responses.stream({ ...request, background: true }).finalResponse();
  simulator.expireStream(id);
  await expect(
    client.responses.retrieve(id, { stream: true, starting_after: 1 }),
  ).rejects.toMatchObject({
    status: 400,
    message: expect.stringContaining("can no longer be streamed because it is more than 5 minutes"),
  });
  expect((await client.responses.retrieve(id)).status).toBe("completed");
});

test("a cancelled background response keeps its text, and its stream just ends", async () => {
  const held = gate(2);
  simulator.script(text(WORDS, { pauseAfter: held }));
  const stream = await client.responses.create({ ...request, background: true, stream: true });
  await held.reached;
  const { responseId } = simulator.bill[0]!;
  const cancelled = await client.responses.cancel(responseId!);
  expect(cancelled).toMatchObject({
    status: "cancelled",
    output: [{ content: [{ type: "output_text", text: "one two" }] }],
  });
  const events = await readAll(stream);
  expect(events.at(-1)?.type).toBe("response.output_text.delta");
  expect(simulator.bill[0]).toMatchObject({ status: "cancelled", finalEventSent: false });
  expect((await client.responses.cancel(responseId!)).status).toBe("cancelled");
});

test("a foreground response ends with its client, and cannot be cancelled or resumed", async () => {
  const held = gate(2);
  simulator.script(text(WORDS, { pauseAfter: held }));
  const stream = await client.responses.create({ ...request, stream: true });
  await held.reached;
  const { responseId } = simulator.bill[0]!;
  await expect(client.responses.cancel(responseId!)).rejects.toThrow("synchronous");
  await expect(
    client.responses.retrieve(responseId!, { stream: true, starting_after: 1 }),
  ).rejects.toThrow(OpenAI.BadRequestError);
  stream.controller.abort();
  expect(await simulator.waitFor("aborted")).toMatchObject({ responseId, outputTokens: 2 });
  expect((await client.responses.retrieve(responseId!)).output_text).toBe("one two");
});

test("what was not stored, or was deleted, is not found", async () => {
  simulator.script(text("a"), text("b"));
  const unstored = await client.responses.create({ ...request, store: false });
  await expect(client.responses.retrieve(unstored.id)).rejects.toThrow(OpenAI.NotFoundError);
  const stored = await client.responses.create(request);
  await client.responses.delete(stored.id);
  await expect(client.responses.retrieve(stored.id)).rejects.toThrow(OpenAI.NotFoundError);
});

test("input items are listed newest first, in pages", async () => {
  simulator.script(text("a"));
  const input = ["1", "2", "3"].map((content) => ({ role: "user" as const, content }));
  const { id } = await client.responses.create({ ...request, input });
  const texts: unknown[] = [];
  for await (const item of client.responses.inputItems.list(id, { limit: 2 })) {
    expect(item.id).toMatch(/^msg_/);
    texts.push(item.type === "message" && item.content[0]);
  }
  expect(texts).toEqual(["3", "2", "1"].map((said) => ({ type: "input_text", text: said })));
});
