import OpenAI from "openai";
import type { APIError } from "openai";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { calls, fault, gate, text } from "../src/simulator/server.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";

const weather = defineTool({
  name: "get_weather",
  description: "The weather of a place",
  parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
  handler: ({ place }) => `Sunny in ${String(place)}`,
});

const refused = {
  message: "No such prompt.",
  type: "invalid_request_error",
  param: null,
  code: "invalid_prompt",
};

const clientTool = {
  type: "function" as const,
  name: "ask_user",
  parameters: { type: "object", properties: {} },
  strict: false,
};

describeWith(["postgres", "temporal"], "the gateway to an unchanged OpenAI client", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve({
      agents: [
        defineAgent({ name: "default", model: "gpt-test" }),
        defineAgent({ name: "once", model: "gpt-once", limits: { maxAttemptsPerStep: 1 } }),
        defineAgent({ name: "guide", model: "gpt-test", tools: ["get_weather"] }),
      ],
      tools: [weather],
    });
  });

  afterEach(() => served.simulator.reset());
  afterAll(() => served.close());

  test("answers a request with its response, which can be retrieved", async () => {
    const { client, simulator } = served;
    simulator.script(text("Hello there", { usage: { inputTokens: 7, outputTokens: 3 } }));
    const { data: response, response: http } = await client.responses
      .create({ input: "Hi", metadata: { order: "7" } })
      .withResponse();
    expect(response).toMatchObject({
      object: "response",
      status: "completed",
      output_text: "Hello there",
      metadata: { order: "7" },
      usage: { input_tokens: 7, output_tokens: 3, total_tokens: 10 },
    });
    expect(http.headers.get("x-request-id")).toMatch(/^req_/);
    expect(http.headers.get("x-turnkeeper-turn-id")).toBe(response.id);
    expect(http.headers.get("x-turnkeeper-conversation-id")).toMatch(/^conv_/);
    expect(await client.responses.retrieve(response.id)).toEqual(response);
    const included = { include: ["reasoning.encrypted_content" as const] };
    expect(await client.responses.retrieve(response.id, included)).toEqual(response);
  });

  test("streams a response by number", async () => {
    const { client, simulator } = served;
    simulator.script(text("Hello there", { deltas: ["Hel", "lo ", "there"] }));
    const { data: stream, response: http } = await client.responses
      .create({ input: "Hi", stream: true })
      .withResponse();
    expect(http.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(http.headers.get("cache-control")).toBe("no-cache");
    expect(http.headers.get("x-accel-buffering")).toBe("no");
    const events = await Array.fromAsync(stream);
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
    expect(events[0]?.type).toBe("response.created");
    const last = events.at(-1);
    expect(last?.type).toBe("response.completed");
    const id = http.headers.get("x-turnkeeper-turn-id") ?? "";
    expect(await client.responses.retrieve(id)).toMatchObject(
      (last as OpenAI.Responses.ResponseCompletedEvent).response,
    );
  });

  test("resumes a stream in the middle, and after its end has nothing more to say", async () => {
    const { client, simulator } = served;
    simulator.script(text("one two three four"));
    const all = await Array.fromAsync(await client.responses.create({ input: "Hi", stream: true }));
    const { response } = all[0] as OpenAI.Responses.ResponseCreatedEvent;
    const resume = async (startingAfter: number) =>
      Array.fromAsync(
        await client.responses.retrieve(response.id, {
          stream: true,
          starting_after: startingAfter,
        }),
      );
    const middle = Math.floor(all.length / 2);
    expect(await resume(middle)).toEqual(all.slice(middle + 1));
    expect(await resume(all.length - 1)).toEqual([]);
    await expect(resume(all.length)).rejects.toThrow(OpenAI.BadRequestError);
  });

  test("resumes a stream that is still running, and refuses a number from its future", async () => {
    const { client, simulator } = served;
    const held = gate(1);
    simulator.script(text("one two three", { pauseAfter: held }));
    const stream = await client.responses.create({ input: "Hi", stream: true });
    const iterator = stream[Symbol.asyncIterator]();
    const seen: OpenAI.Responses.ResponseStreamEvent[] = [];
    while (seen.at(-1)?.type !== "response.output_text.delta") {
      seen.push((await iterator.next()).value as OpenAI.Responses.ResponseStreamEvent);
    }
    const { response } = seen[0] as OpenAI.Responses.ResponseCreatedEvent;
    const future = client.responses.retrieve(response.id, { stream: true, starting_after: 5_000 });
    await expect(future).rejects.toThrow(OpenAI.BadRequestError);
    const resumed = await client.responses.retrieve(response.id, {
      stream: true,
      starting_after: seen.length - 1,
    });
    held.open();
    const rest = await Array.fromAsync(resumed);
    expect(rest[0]?.sequence_number).toBe(seen.length);
    expect(rest.at(-1)?.type).toBe("response.completed");
  });

  test("feeds the stream helper to its final response", async () => {
    const { client, simulator } = served;
    simulator.script(text("Hello there"));
    const final = await client.responses.stream({ model: "default", input: "Hi" }).finalResponse();
    expect(final).toMatchObject({ status: "completed", output_text: "Hello there" });
    const again = await client.responses.stream({ response_id: final.id }).finalResponse();
    expect(again.output_text).toBe("Hello there");
  });

  test("shows the calls of server tools as mcp_call items, which the stream helper understands", async () => {
    const { client, simulator } = served;
    simulator.script(
      calls([
        { name: "get_weather", arguments: { place: "Rome" } },
        { name: "get_weather", arguments: { place: "Oslo" } },
      ]),
      text("Sunny in both"),
    );
    const helper = client.responses.stream({ model: "guide", input: "Rome and Oslo?" });
    const events = await Array.fromAsync(helper);
    const final = await helper.finalResponse();
    expect(final.output_text).toBe("Sunny in both");
    expect(final.output.map((item) => item.type)).toEqual(["mcp_call", "mcp_call", "message"]);
    expect(final.output[0]).toMatchObject({ status: "completed", output: "Sunny in Rome" });
    expect(final.output[1]).toMatchObject({ status: "completed", output: "Sunny in Oslo" });
    expect(events.filter((event) => event.type === "response.mcp_call.completed")).toHaveLength(2);
    const stored = await client.responses.retrieve(final.id);
    expect(final.output).toMatchObject(stored.output);
  });

  test("closes the text of a call that broke off, so that the stream helper ends with the answer alone", async () => {
    const { client, simulator } = served;
    simulator.script(fault.reset(2, text("lost words")), text("The answer"));
    const helper = client.responses.stream({ model: "default", input: "Hi" });
    const events = await Array.fromAsync(helper);
    const final = await helper.finalResponse();
    expect(final).toMatchObject({ status: "completed", output_text: "The answer" });
    expect(final.output).toHaveLength(1);
    const closed = events.filter((event) => event.type === "response.output_item.done");
    expect(closed.map((event) => (event.item as { status: string }).status)).toEqual([
      "incomplete",
      "completed",
    ]);
    const again = await client.responses.stream({ response_id: final.id }).finalResponse();
    expect(again.output_text).toBe("The answer");
  });

  test("cancels a running response and keeps what was said", async () => {
    const { client, simulator } = served;
    const held = gate(2);
    simulator.script(text("one two three four", { pauseAfter: held }));
    const stream = await client.responses.create({ input: "Count", stream: true });
    const events: OpenAI.Responses.ResponseStreamEvent[] = [];
    let cancelled: OpenAI.Responses.Response | undefined;
    let deltas = "";
    for await (const event of stream) {
      events.push(event);
      if (event.type !== "response.output_text.delta") continue;
      deltas += event.delta;
      if (deltas !== "one two") continue;
      const { response } = events[0] as OpenAI.Responses.ResponseCreatedEvent;
      cancelled = await client.responses.cancel(response.id);
    }
    expect(cancelled).toMatchObject({
      status: "cancelled",
      output: [{ type: "message", status: "incomplete", content: [{ text: "one two" }] }],
    });
    expect(events.at(-1)).toMatchObject({
      type: "response.incomplete",
      response: { status: "cancelled" },
    });
    expect(await client.responses.cancel(cancelled?.id ?? "")).toEqual(cancelled);
  });

  test("answers a background request at once, to be polled", async () => {
    const { client, simulator } = served;
    const held = gate(1);
    simulator.script(text("done at last", { pauseAfter: held }));
    const started = await client.responses.create({ input: "Go", background: true });
    expect(started).toMatchObject({ status: "in_progress", background: true, output: [] });
    await held.reached;
    expect((await client.responses.retrieve(started.id)).status).toBe("in_progress");
    held.open();
    const stream = await client.responses.retrieve(started.id, { stream: true });
    expect((await Array.fromAsync(stream)).at(-1)?.type).toBe("response.completed");
    expect((await client.responses.retrieve(started.id)).output_text).toBe("done at last");
  });

  test("streams a background request too", async () => {
    const { client, simulator } = served;
    simulator.script(text("done"));
    const stream = await client.responses.create({ input: "Go", background: true, stream: true });
    expect((await Array.fromAsync(stream)).at(-1)?.type).toBe("response.completed");
  });

  test("deletes a response that has ended, and refuses to delete one that runs", async () => {
    const { client, simulator } = served;
    const held = gate(1);
    simulator.script(text("one two", { pauseAfter: held }));
    const { id } = await client.responses.create({ input: "Go", background: true });
    await held.reached;
    await expect(client.responses.delete(id)).rejects.toThrow(OpenAI.ConflictError);
    held.open();
    await Array.fromAsync(await client.responses.retrieve(id, { stream: true }));
    expect(await client.responses.delete(id)).toEqual({ id, object: "response", deleted: true });
    await expect(client.responses.retrieve(id)).rejects.toThrow(OpenAI.NotFoundError);
    await expect(client.responses.delete(id)).rejects.toThrow(OpenAI.NotFoundError);
    const after = client.responses.create({ input: "And?", previous_response_id: id });
    await expect(after).rejects.toMatchObject({ status: 400, code: "previous_response_not_found" });
  });

  test("lists the input of a response, page by page", async () => {
    const { client, simulator } = served;
    simulator.script(text("ok"));
    const { id } = await client.responses.create({
      input: [1, 2, 3].map((number) => ({ role: "user" as const, content: `text ${number}` })),
    });
    const newestFirst = await client.responses.inputItems.list(id, { limit: 2 });
    expect(newestFirst.data).toMatchObject([
      { type: "message", role: "user", content: [{ type: "input_text", text: "text 3" }] },
      { type: "message", role: "user", content: [{ type: "input_text", text: "text 2" }] },
    ]);
    expect(newestFirst.has_more).toBe(true);
    const all = await Array.fromAsync(
      client.responses.inputItems.list(id, { limit: 1, order: "asc" }),
    );
    expect(all).toHaveLength(3);
    await expect(client.responses.inputItems.list(id, { limit: 101 })).rejects.toThrow(
      OpenAI.BadRequestError,
    );
    await expect(client.responses.inputItems.list(id, { after: "msg_none" })).rejects.toThrow(
      OpenAI.NotFoundError,
    );
  });

  test("answers a failed turn with the failure's status, once", async () => {
    const { openClient, simulator } = served;
    simulator.script(fault.status(400, { body: { error: refused } }));
    const failing = openClient({ maxRetries: 2 }).responses.create({ input: "Hi" });
    const error = await failing.catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({ code: "invalid_prompt", type: "invalid_request_error" });
    expect((error as Error).message).toContain("No such prompt.");
    expect((error as InstanceType<typeof OpenAI.APIError>).headers?.get("x-should-retry")).toBe(
      "false",
    );
    expect(simulator.bill).toHaveLength(1);
  });

  test("gives a rate limit without a code the same one on record and as an error", async () => {
    const { client, simulator } = served;
    simulator.script(fault.status(429, { body: { error: { message: "Slow." } } }));
    const failing = client.responses.create({ model: "once", input: "Hi" });
    const error = (await failing.catch((caught: unknown) => caught)) as APIError;
    const code = "rate_limit_exceeded";
    expect(error).toMatchObject({ status: 429, code });
    const response = await client.responses.retrieve(
      error.headers?.get("x-turnkeeper-turn-id") ?? "",
    );
    expect(response).toMatchObject({ status: "failed", error: { code } });
  });

  test("streams a failed turn to its end", async () => {
    const { client, simulator } = served;
    simulator.script(fault.status(400, { body: { error: refused } }));
    const events = await Array.fromAsync(
      await client.responses.create({ input: "Hi", stream: true }),
    );
    expect(events.at(-1)).toMatchObject({
      type: "response.failed",
      response: { status: "failed", error: { code: "invalid_prompt" } },
    });
  });

  test("ends a response with calls of the client's tools, and takes all their answers", async () => {
    const { client, simulator } = served;
    const asked = (callId: string) => ({ name: "ask_user", arguments: {}, callId });
    simulator.script(calls([asked("call_a"), asked("call_b")]), text("Thanks"));
    const first = await client.responses.create({ input: "Hi", tools: [clientTool] });
    expect(first.output.map((item) => item.type)).toEqual(["function_call", "function_call"]);
    const answer = (callId: string) => ({
      type: "function_call_output" as const,
      call_id: callId,
      output: "yes",
    });
    const reply = (...callIds: string[]) =>
      client.responses.create({
        previous_response_id: first.id,
        input: callIds.map(answer),
        tools: [clientTool],
      });
    await expect(reply("call_a")).rejects.toMatchObject({ status: 400, code: "unanswered_calls" });
    await expect(reply("call_a", "call_b", "call_c")).rejects.toMatchObject({
      status: 400,
      code: "unknown_call",
    });
    expect((await reply("call_a", "call_b")).output_text).toBe("Thanks");
  });

  test("passes on to the model what Turnkeeper does not act on", async () => {
    const { client, simulator } = served;
    simulator.script(text('{"a":1}'));
    const parameters = {
      instructions: "Be brief.",
      max_output_tokens: 1_000,
      temperature: 0.3,
      top_p: 0.9,
      reasoning: { effort: "low" as const },
      parallel_tool_calls: false,
      service_tier: "flex" as const,
      prompt_cache_key: "key",
      tool_choice: "auto" as const,
      truncation: "disabled" as const,
      safety_identifier: "user-7",
      text: {
        format: {
          type: "json_schema" as const,
          name: "answer",
          strict: true,
          schema: {
            type: "object",
            properties: { a: { type: "number" } },
            required: ["a"],
            additionalProperties: false,
          },
        },
      },
    };
    const content = [
      { type: "input_text" as const, text: "See" },
      {
        type: "input_image" as const,
        image_url: "data:image/png;base64,iVBORw0KGgo=",
        detail: "low" as const,
      },
      {
        type: "input_file" as const,
        filename: "a.pdf",
        file_data: "data:application/pdf;base64,JVBERi0=",
      },
    ];
    const response = await client.responses.parse({
      input: [{ role: "user", content }],
      tools: [clientTool],
      ...parameters,
    });
    const sent = simulator.requests[0]?.body as unknown as Record<string, unknown>;
    expect(sent).toMatchObject({ ...parameters, tools: [clientTool] });
    expect((sent["input"] as { content: unknown }[])[0]?.content).toEqual(content);
    expect(response).toMatchObject({
      temperature: 0.3,
      text: parameters.text,
      output_parsed: { a: 1 },
    });
  });

  test("refuses what it cannot keep", async () => {
    const { client } = served;
    const create = (body: object) =>
      client.responses.create({ input: "Hi", stream: false, ...body });
    await expect(create({ store: false })).rejects.toMatchObject({ status: 400, param: "store" });
    await expect(create({ input: [] })).rejects.toMatchObject({ status: 400, param: "input" });
    await expect(create({ input: "" })).rejects.toMatchObject({ status: 400, param: "input" });
    await expect(create({ conversation: "conv_none" })).rejects.toMatchObject({
      status: 404,
      code: "conversation_not_found",
    });
    await expect(create({ previous_response_id: "resp_none" })).rejects.toMatchObject({
      status: 400,
      code: "previous_response_not_found",
    });
    await expect(client.responses.retrieve("resp_none")).rejects.toMatchObject({
      status: 404,
      code: "response_not_found",
    });
  });

  test("lists the agents as models", async () => {
    const { client } = served;
    const models = await Array.fromAsync(client.models.list());
    expect(models.map((model) => model.id)).toEqual(["default", "guide", "once"]);
    expect(await client.models.retrieve("guide")).toEqual(models[1]);
    expect(models[1]).toMatchObject({ object: "model", owned_by: "turnkeeper" });
    await expect(client.models.retrieve("none")).rejects.toMatchObject({ code: "model_not_found" });
  });
});
