import OpenAI from "openai";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { gate, text } from "../src/simulator/server.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";

const question = (content: string) => ({ role: "user" as const, content });

describeWith(["postgres", "temporal"], "conversations over HTTP", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve();
  });

  afterEach(() => served.simulator.reset());
  afterAll(() => served.close());

  /** What the model saw of the last request, as role and text. */
  function lastSeen(): string[] {
    const { items } = served.simulator.requests.at(-1) ?? { items: [] };
    return items.map((item) => {
      const { role, content } = item as { role: string; content: string | { text: string }[] };
      return `${role}: ${typeof content === "string" ? content : content.map((part) => part.text).join("")}`;
    });
  }

  test("keep what was said, turn by turn", async () => {
    const { client, simulator } = served;
    simulator.script(text("one"), text("two"));
    const { id } = await client.conversations.create({
      metadata: { topic: "numbers" },
      items: [{ type: "message", role: "developer", content: "Count." }],
    });
    const first = await client.responses.create({ conversation: id, input: "Begin" });
    expect(first.conversation).toEqual({ id });
    await client.responses.create({ conversation: { id }, input: "Go on" });
    expect(lastSeen()).toEqual([
      "developer: Count.",
      "user: Begin",
      "assistant: one",
      "user: Go on",
    ]);
    const items = await Array.fromAsync(
      client.conversations.items.list(id, { order: "asc", limit: 2 }),
    );
    expect(items.map((item) => (item as { role: string }).role)).toEqual([
      "developer",
      "user",
      "assistant",
      "user",
      "assistant",
    ]);
    expect(items[0]).toMatchObject({ content: [{ type: "input_text", text: "Count." }] });
    const newest = await client.conversations.items.list(id);
    expect(newest.data.toReversed()).toEqual(items);
    expect(newest.has_more).toBe(false);
  });

  test("go on from the last response, and fork from an older one", async () => {
    const { client, simulator } = served;
    simulator.script(text("one"), text("two"), text("other two"));
    const first = await client.responses.create({ input: "Begin" });
    const second = await client.responses.create({
      previous_response_id: first.id,
      input: "Go on",
    });
    expect(lastSeen()).toEqual(["user: Begin", "assistant: one", "user: Go on"]);
    expect(second.previous_response_id).toBe(first.id);
    const { data: fork, response: http } = await client.responses
      .create({ previous_response_id: first.id, input: "Differently" })
      .withResponse();
    expect(fork.output_text).toBe("other two");
    expect(lastSeen()).toEqual(["user: Begin", "assistant: one", "user: Differently"]);
    const forkId = http.headers.get("x-turnkeeper-conversation-id") ?? "";
    const items = await client.conversations.items.list(forkId);
    expect(items.data).toHaveLength(4);
  });

  test("refuse a second turn while one runs, which SDKs do not repeat", async () => {
    const { openClient, simulator } = served;
    let requests = 0;
    const client = openClient({
      maxRetries: 2,
      fetch: (url, init) => {
        requests += 1;
        return fetch(url, init);
      },
    });
    const held = gate(1);
    simulator.script(text("one two", { pauseAfter: held }));
    const { id } = await client.conversations.create();
    const running = await client.responses.create({
      conversation: id,
      input: "A",
      background: true,
    });
    await held.reached;
    const before = requests;
    const second = client.responses.create({ conversation: id, input: "B" });
    await expect(second).rejects.toThrow(OpenAI.ConflictError);
    await expect(second).rejects.toMatchObject({ code: "conversation_busy" });
    expect(requests - before).toBe(1);
    const after = client.responses.create({ previous_response_id: running.id, input: "B" });
    await expect(after).rejects.toThrow(OpenAI.ConflictError);
    const write = client.conversations.items.create(id, { items: [question("B")] });
    await expect(write).rejects.toThrow(OpenAI.ConflictError);
    await expect(client.conversations.delete(id)).rejects.toThrow(OpenAI.ConflictError);
    held.open();
    await Array.fromAsync(await client.responses.retrieve(running.id, { stream: true }));
  });

  test("queue a second turn when asked to", async () => {
    const { client, simulator } = served;
    const held = gate(1);
    simulator.script(text("one", { pauseAfter: held }), text("two"));
    const { id } = await client.conversations.create();
    const first = await client.responses.create({ conversation: id, input: "A", background: true });
    await held.reached;
    const queue = { headers: { "x-turnkeeper-when-busy": "queue" } };
    const body = { conversation: id, input: "B", background: true } as const;
    const second = await client.responses.create(body, queue);
    expect(second.status).toBe("queued");
    held.open();
    const stream = await client.responses.retrieve(second.id, { stream: true });
    const types = (await Array.fromAsync(stream)).map((event) => event.type);
    expect(types.slice(0, 3)).toEqual([
      "response.created",
      "response.queued",
      "response.in_progress",
    ]);
    expect((await client.responses.retrieve(first.id)).status).toBe("completed");
    expect(lastSeen()).toEqual(["user: A", "assistant: one", "user: B"]);
  });

  test("let go of a queued turn that is cancelled, and of no other", async () => {
    const { client, simulator } = served;
    const held = gate(1);
    simulator.script(text("one two", { pauseAfter: held }));
    const { id } = await client.conversations.create();
    const first = await client.responses.create({ conversation: id, input: "A", background: true });
    await held.reached;
    const queue = { headers: { "x-turnkeeper-when-busy": "queue" } };
    const body = { conversation: id, input: "B", background: true } as const;
    const second = await client.responses.create(body, queue);
    expect((await client.responses.cancel(second.id)).status).toBe("cancelled");
    expect((await client.responses.retrieve(first.id)).status).toBe("in_progress");
    held.open();
    const stream = await client.responses.retrieve(first.id, { stream: true });
    expect((await Array.fromAsync(stream)).at(-1)?.type).toBe("response.completed");
  });

  test("refuse another word for busy", async () => {
    const { client } = served;
    const headers = { "x-turnkeeper-when-busy": "shout" };
    const refused = client.responses.create({ input: "B" }, { headers });
    await expect(refused).rejects.toMatchObject({ status: 400, param: "x-turnkeeper-when-busy" });
  });

  test("have metadata and an end", async () => {
    const { client } = served;
    const created = await client.conversations.create({ metadata: { a: "1" } });
    expect(created).toMatchObject({ object: "conversation", metadata: { a: "1" } });
    expect(await client.conversations.retrieve(created.id)).toEqual(created);
    const updated = await client.conversations.update(created.id, { metadata: { b: "2" } });
    expect(updated).toEqual({ ...created, metadata: { b: "2" } });
    expect(await client.conversations.delete(created.id)).toEqual({
      id: created.id,
      object: "conversation.deleted",
      deleted: true,
    });
    for (const gone of [
      () => client.conversations.retrieve(created.id),
      () => client.conversations.update(created.id, { metadata: {} }),
      () => client.conversations.delete(created.id),
      () => client.conversations.items.list(created.id),
      () => client.responses.create({ conversation: created.id, input: "Hi" }),
    ]) {
      await expect(gone()).rejects.toMatchObject({ status: 404, code: "conversation_not_found" });
    }
  });

  test("take items, give them out one by one and forget them", async () => {
    const { client, simulator } = served;
    const { id } = await client.conversations.create();
    const added = await client.conversations.items.create(id, {
      items: [question("first"), question("second")],
    });
    expect(added).toMatchObject({ object: "list", has_more: false });
    const [first, second] = added.data;
    expect(added.first_id).toBe(first?.id);
    const where = { conversation_id: id };
    const itemId = first?.id ?? "";
    expect(await client.conversations.items.retrieve(itemId, where)).toEqual(first);
    expect(await client.conversations.items.delete(itemId, where)).toMatchObject({ id });
    await expect(client.conversations.items.retrieve(itemId, where)).rejects.toMatchObject({
      status: 404,
      code: "item_not_found",
    });
    expect((await client.conversations.items.list(id)).data).toEqual([second]);
    simulator.script(text("ok"));
    await client.responses.create({ conversation: id, input: "third" });
    expect(lastSeen()).toEqual(["user: second", "user: third"]);
  });

  test("keep the items of a response that is deleted", async () => {
    const { client, simulator } = served;
    simulator.script(text("one"), text("two"));
    const { id } = await client.conversations.create();
    const response = await client.responses.create({ conversation: id, input: "Begin" });
    const before = await client.conversations.items.list(id);
    expect(before.data).toHaveLength(2);
    await client.responses.delete(response.id);
    expect((await client.conversations.items.list(id)).data).toEqual(before.data);
    await client.responses.create({ conversation: id, input: "Go on" });
    expect(lastSeen()).toEqual(["user: Begin", "assistant: one", "user: Go on"]);
  });

  test("wait for the answers of calls that they were created with", async () => {
    const { client, simulator } = served;
    simulator.script(text("ok"));
    const call = { type: "function_call" as const, call_id: "call_1", name: "f", arguments: "{}" };
    const { id } = await client.conversations.create({ items: [question("Hi"), call] });
    const unanswered = client.responses.create({ conversation: id, input: "And?" });
    await expect(unanswered).rejects.toMatchObject({ code: "unanswered_calls" });
    const output = { type: "function_call_output" as const, call_id: "call_1", output: "done" };
    const answered = await client.responses.create({ conversation: id, input: [output] });
    expect(answered.output_text).toBe("ok");
  });

  const badItems: [string, object, string, string][] = [
    [
      "parts that are no objects",
      { role: "user", content: [null, 42] },
      "invalid_value",
      "[0].content",
    ],
    ["a type that is no type", { type: "Not a type" }, "invalid_value", "[0].type"],
    [
      "the output of a call that was never made",
      { type: "function_call_output", call_id: "call_none", output: "1" },
      "unknown_call",
      "",
    ],
  ];

  test.each(badItems)("refuse %s as a turn does", async (_name, item, code, at) => {
    const { client, ask } = served;
    const { id } = await client.conversations.create();
    const items = [item];
    const refusal = { status: 400, body: { error: { code, param: `items${at}` } } };
    expect(await ask("POST", "/v1/conversations", { items })).toMatchObject(refusal);
    expect(await ask("POST", `/v1/conversations/${id}/items`, { items })).toMatchObject(refusal);
    const ofTurn = { status: 400, body: { error: { code, param: `input${at}` } } };
    expect(await ask("POST", "/v1/responses", { input: items })).toMatchObject(ofTurn);
    expect((await client.conversations.items.list(id)).data).toEqual([]);
  });

  test("take the output of a call that was written before it", async () => {
    const { client } = served;
    const { id } = await client.conversations.create();
    const call = { type: "function_call" as const, call_id: "call_1", name: "f", arguments: "{}" };
    const output = { type: "function_call_output" as const, call_id: "call_1", output: "done" };
    await client.conversations.items.create(id, { items: [question("Hi"), call] });
    await client.conversations.items.create(id, { items: [output] });
    const again = client.conversations.items.create(id, { items: [output] });
    await expect(again).rejects.toMatchObject({ status: 400, code: "unknown_call" });
    expect((await client.conversations.items.list(id)).data).toHaveLength(3);
  });

  test("list items that share an id without going round in circles", async () => {
    const { client, simulator } = served;
    simulator.script(text("ok"), text("ok"));
    const { id } = await client.conversations.create();
    const input = [{ ...question("Hi"), type: "message" as const, id: "msg_mine" }];
    await client.responses.create({ conversation: id, input });
    const last = await client.responses.create({ conversation: id, input });
    for (const order of ["asc", "desc"] as const) {
      const pages = client.conversations.items.list(id, { order, limit: 1 });
      const ids: string[] = [];
      for await (const item of pages) {
        ids.push(item.id ?? "");
        expect(ids.length).toBeLessThanOrEqual(4);
      }
      // A page goes on behind the last item that has the id, in the order of reading.
      const shown = ["msg_mine", last.output[0]?.id];
      expect(ids).toEqual(order === "asc" ? shown : shown.toReversed());
    }
  });

  test("take no more items at a time than the API does", async () => {
    const { client } = served;
    const items = Array.from({ length: 21 }, (_, number) => question(`${number}`));
    await expect(client.conversations.create({ items })).rejects.toMatchObject({ param: "items" });
    const { id } = await client.conversations.create({ items: items.slice(1) });
    const adding = client.conversations.items.create(id, { items });
    await expect(adding).rejects.toMatchObject({ status: 400, param: "items" });
    const none = client.conversations.items.create(id, { items: [] });
    await expect(none).rejects.toMatchObject({ status: 400, param: "items" });
    const wrong = client.conversations.items.create(id, { items: [{ type: "message" } as never] });
    await expect(wrong).rejects.toMatchObject({ status: 400, param: "items[0].role" });
  });
});
