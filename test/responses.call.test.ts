import { createServer } from "node:http";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text as readText } from "node:stream/consumers";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openModelEndpoint } from "../src/responses/call.ts";
import type { ModelCall, ModelEndpoint, UpstreamEvent } from "../src/responses/call.ts";
import { apiError, fault } from "../src/simulator/fault.ts";
import { gate } from "../src/simulator/gate.ts";
import { calls, text } from "../src/simulator/script.ts";
import type { ScriptStep } from "../src/simulator/script.ts";
import { startSimulator } from "../src/simulator/server.ts";
import type { Simulator } from "../src/simulator/server.ts";
import { StepFailure } from "../src/turn/failures.ts";
import type { Failure } from "../src/turn/failures.ts";
import { userMessage } from "../src/turn/items.ts";

const apiKey = "a-key-that-is-long-enough";
const limits = { connectTimeoutMs: 2_000, headersTimeoutMs: 5_000 };

function callOf(changes: Partial<ModelCall> = {}): ModelCall {
  const input = [userMessage("hello")];
  return {
    model: "gpt-test",
    instructions: null,
    input,
    tools: [],
    parameters: {},
    keepAs: null,
    ...changes,
  };
}

interface Outcome {
  events: UpstreamEvent[];
  failure: Failure | null;
}

/** Reads a call to its end. What is no StepFailure is thrown on. */
async function outcomeOf(
  endpoint: ModelEndpoint,
  options: { call?: Partial<ModelCall>; idleTimeoutMs?: number } = {},
): Promise<Outcome> {
  const events: UpstreamEvent[] = [];
  const { signal } = new AbortController();
  const idleTimeoutMs = options.idleTimeoutMs ?? 5_000;
  try {
    const stream = endpoint.stream(callOf(options.call), { signal, idleTimeoutMs });
    for await (const event of stream) events.push(event);
    return { events, failure: null };
  } catch (error) {
    if (!(error instanceof StepFailure)) throw error;
    return { events, failure: error.failure };
  }
}

function typesOf(events: UpstreamEvent[]): string[] {
  return events.map((event) => event.type);
}

describe("a call to the simulator", () => {
  let simulator: Simulator;
  let endpoint: ModelEndpoint;

  beforeEach(async () => {
    simulator = await startSimulator();
    endpoint = openModelEndpoint({ baseUrl: simulator.baseUrl, apiKey, ...limits });
  });

  afterEach(async () => {
    await endpoint.close();
    await simulator.close();
  });

  it("gives all events up to the terminal one", async () => {
    simulator.script(text("Hello there."));
    const { events, failure } = await outcomeOf(endpoint);
    expect(failure).toBeNull();
    expect(events[0]?.type).toBe("response.created");
    expect(events.at(-1)?.type).toBe("response.completed");
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    expect(deltas.map((event) => event["delta"]).join("")).toBe("Hello there.");
  });

  it("sends the full input, no previous response, nothing to store, and asks for reasoning", async () => {
    simulator.script(text("ok"));
    await outcomeOf(endpoint, {
      call: {
        instructions: "Be brief.",
        tools: [{ type: "function", name: "f", parameters: {}, strict: false }],
        parameters: {
          temperature: 0.5,
          include: ["web_search_call.results"],
          previous_response_id: "resp_1",
          conversation: "conv_1",
          background: true,
          store: true,
        },
      },
    });
    expect(simulator.requests[0]?.body).toEqual({
      model: "gpt-test",
      instructions: "Be brief.",
      input: [
        {
          type: "message",
          role: "user",
          status: "completed",
          content: [{ type: "input_text", text: "hello" }],
        },
      ],
      tools: [{ type: "function", name: "f", parameters: {}, strict: false }],
      temperature: 0.5,
      include: ["web_search_call.results", "reasoning.encrypted_content"],
      store: false,
      stream: true,
    });
  });

  it("does without encrypted reasoning for a model that refuses it, and remembers that", async () => {
    const message = "Encrypted content is not supported with this model.";
    const refusal = apiError(message, "invalid_request_error", null, "include");
    simulator.script(fault.status(400, { body: refusal }), text("one"), text("two"), text("three"));
    expect((await outcomeOf(endpoint)).failure).toBeNull();
    expect((await outcomeOf(endpoint)).failure).toBeNull();
    expect((await outcomeOf(endpoint, { call: { model: "other" } })).failure).toBeNull();
    const included = simulator.requests.map((request) => request.body["include"]);
    const wanted = ["reasoning.encrypted_content"];
    expect(included).toEqual([wanted, undefined, undefined, wanted]);
  });

  it("tells broken encrypted content from a model that has none", async () => {
    const message = "The encrypted content for item rs_1 could not be verified.";
    const body = apiError(message, "invalid_request_error", "invalid_encrypted_content");
    simulator.script(fault.status(400, { body }));
    const { failure } = await outcomeOf(endpoint);
    expect(failure).toMatchObject({ class: "item_not_found", code: "invalid_encrypted_content" });
    expect(simulator.requests).toHaveLength(1);
  });

  it.each<[string, ScriptStep, Partial<Failure>]>([
    ["a clean end without a terminal event", fault.eof(2), { class: "stream_truncated" }],
    ["a reset in the middle of the body", fault.reset(2), { class: "stream_reset" }],
    ["a socket closed before the headers", fault.destroy(), { class: "transport" }],
    ["an event that is cut off", fault.malformed(2), { class: "stream_truncated" }],
    ["a body that is not JSON", fault.notJson(), { class: "malformed_answer" }],
    [
      "an error event",
      fault.errorEvent(2, { code: "server_error" }),
      { class: "server_error", code: "server_error", message: "Simulated error." },
    ],
    [
      "an error event without its event line",
      fault.errorEvent(2, { code: "rate_limit_exceeded", eventLine: false }),
      { class: "rate_limited", code: "rate_limit_exceeded" },
    ],
    [
      "an error event for a quota",
      fault.errorEvent(0, { code: "insufficient_quota" }),
      { class: "quota_exhausted" },
    ],
    ["a 429", fault.rateLimit({ seconds: 90 }), { class: "rate_limited", retryAfterMs: 90_000 }],
    ["a quota's 429", fault.quota(), { class: "quota_exhausted", code: "insufficient_quota" }],
    ["a 500", fault.status(500), { class: "server_error" }],
    ["a 503", fault.status(503), { class: "overloaded" }],
    ["an unknown model", fault.modelNotFound("m"), { class: "model_not_found" }],
    ["a context that is too long", fault.contextLength(), { class: "context_overflow" }],
  ])("ends %s as a failure of its class, after one request", async (_, step, expected) => {
    simulator.script(step);
    const { failure } = await outcomeOf(endpoint);
    expect(failure).toMatchObject(expected);
    expect(simulator.requests).toHaveLength(1);
  });

  it.each([
    ["server_error", "response_failed"],
    ["rate_limit_exceeded", "rate_limited"],
    ["invalid_prompt", "content_refused"],
    ["image_too_large", "invalid_request"],
    ["vector_store_timeout", "response_failed"],
  ] as const)("hands on response.failed, then fails %s as %s", async (code, failureClass) => {
    simulator.script(fault.failed(1, code));
    const { events, failure } = await outcomeOf(endpoint);
    expect(events.at(-1)?.type).toBe("response.failed");
    expect(failure).toMatchObject({ class: failureClass, code });
    expect(failure?.requestId).toBe(simulator.bill[0]?.requestId);
  });

  it("takes response.incomplete for an answer", async () => {
    simulator.script(fault.incomplete(2));
    const { events, failure } = await outcomeOf(endpoint);
    expect(failure).toBeNull();
    expect(events.at(-1)?.type).toBe("response.incomplete");
  });

  it("passes on events of types that nobody knows yet", async () => {
    simulator.script(fault.unknownEvent(1));
    const { events, failure } = await outcomeOf(endpoint);
    expect(failure).toBeNull();
    expect(typesOf(events)).toContain("response.future_thing.delta");
  });

  it.each([
    ["before the headers", fault.silence()],
    ["in the middle", fault.silence(2)],
  ])("gives up on silence %s and closes the socket", async (_, step) => {
    await endpoint.close();
    const settings = { baseUrl: simulator.baseUrl, apiKey, connectTimeoutMs: 2_000 };
    endpoint = openModelEndpoint({ ...settings, headersTimeoutMs: 300 });
    simulator.script(step);
    const { failure } = await outcomeOf(endpoint, { idleTimeoutMs: 300 });
    expect(failure?.class).toBe("stream_silent");
    await simulator.waitFor("closed");
  });

  it("does not count the time that its caller takes for an event as silence", async () => {
    simulator.script(text("one two three"));
    const { signal } = new AbortController();
    const events: UpstreamEvent[] = [];
    for await (const event of endpoint.stream(callOf(), { signal, idleTimeoutMs: 100 })) {
      if (event.type === "response.created") await new Promise((done) => setTimeout(done, 250));
      events.push(event);
    }
    expect(events.at(-1)?.type).toBe("response.completed");
  });

  it.each([
    ["before the headers", "headers" as const, 0],
    ["in the middle", 2, 2],
  ])(
    "throws the signal's reason and closes the socket when aborted %s",
    async (_, place, deltas) => {
      const stop = gate(place);
      simulator.script(text("one two three four", { pauseAfter: stop }));
      const controller = new AbortController();
      const reason = new Error("the user left");
      const seen: UpstreamEvent[] = [];
      const reading = (async () => {
        const options = { signal: controller.signal, idleTimeoutMs: 5_000 };
        for await (const event of endpoint.stream(callOf(), options)) seen.push(event);
      })();
      await stop.reached;
      controller.abort(reason);
      await expect(reading).rejects.toBe(reason);
      await simulator.waitFor("closed");
      stop.open();
      const isDelta = (event: UpstreamEvent) => event.type === "response.output_text.delta";
      expect(seen.filter(isDelta).length).toBeLessThanOrEqual(deltas);
    },
  );

  it("sends nothing when its signal is aborted already", async () => {
    const reason = new Error("too late");
    const options = { signal: AbortSignal.abort(reason), idleTimeoutMs: 5_000 };
    const iterator = endpoint.stream(callOf(), options)[Symbol.asyncIterator]();
    await expect(iterator.next()).rejects.toBe(reason);
    expect(simulator.requests).toHaveLength(0);
  });

  it("closes the socket when its caller stops reading", async () => {
    simulator.script(text("one two three", { pauseAfter: gate(1) }));
    const { signal } = new AbortController();
    for await (const event of endpoint.stream(callOf(), { signal, idleTimeoutMs: 5_000 })) {
      if (event.type === "response.output_text.delta") break;
    }
    await simulator.waitFor("aborted");
  });

  it("names the provider's request as soon as the headers are there", async () => {
    simulator.script(text("ok"));
    const { signal } = new AbortController();
    const ids: string[] = [];
    const options = { signal, idleTimeoutMs: 5_000, onRequestId: (id: string) => ids.push(id) };
    for await (const event of endpoint.stream(callOf(), options)) {
      if (event.type === "response.created") expect(ids).toHaveLength(1);
    }
    expect(ids).toEqual([simulator.bill[0]?.requestId]);
  });

  it("passes function calls through", async () => {
    simulator.script(calls([{ name: "f", arguments: { a: 1 }, callId: "call_1" }]));
    const { events } = await outcomeOf(endpoint);
    const done = events.find((event) => event.type === "response.output_item.done");
    expect(done?.["item"]).toMatchObject({ name: "f", arguments: '{"a":1}', call_id: "call_1" });
  });
});

describe("a call to a server with manners of its own", () => {
  let server: Server;
  let endpoint: ModelEndpoint;
  let sockets: number;
  let answer: (request: IncomingMessage, response: ServerResponse) => void;

  beforeEach(async () => {
    sockets = 0;
    server = createServer((request, response) => {
      void readText(request).then(() => answer(request, response));
    });
    server.on("connection", () => (sockets += 1));
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
    endpoint = openModelEndpoint({ baseUrl, apiKey, ...limits });
  });

  afterEach(async () => {
    await endpoint.close();
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  });

  const completed = {
    type: "response.completed",
    response: { id: "resp_1", status: "completed", output: [] },
  };

  function sse(...frames: unknown[]): void {
    answer = (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.end(frames.map((frame) => `data: ${JSON.stringify(frame)}\n\n`).join(""));
    };
  }

  function json(status: number, body: unknown): void {
    answer = (_, response) => {
      response.writeHead(status, { "content-type": "application/json" });
      response.end(JSON.stringify(body));
    };
  }

  it("passes over frames that are no events, and needs no sequence numbers", async () => {
    sse(null, 5, "text", [1], { delta: "untyped" }, completed);
    expect(await outcomeOf(endpoint)).toEqual({ events: [completed], failure: null });
  });

  it("tells an answer of another API from one that was cut", async () => {
    sse({ object: "chat.completion.chunk", choices: [] });
    expect((await outcomeOf(endpoint)).failure?.class).toBe("malformed_answer");
  });

  it("refuses a terminal event without a response", async () => {
    sse({ type: "response.completed" });
    expect((await outcomeOf(endpoint)).failure?.class).toBe("malformed_answer");
  });

  it("reads an error that is only an object in the stream, its status as a number in `code`", async () => {
    sse({ error: { message: "busy", code: 503 } });
    expect((await outcomeOf(endpoint)).failure).toMatchObject({
      class: "overloaded",
      code: "overloaded",
    });
  });

  it("turns the answer of a server that does not stream into its events", async () => {
    const part = { type: "output_text", text: "Hi.", annotations: [] };
    const message = { type: "message", id: "msg_1", role: "assistant", content: [part] };
    const call = {
      type: "function_call",
      id: "fc_1",
      call_id: "call_1",
      name: "f",
      arguments: "{}",
    };
    const whole = {
      id: "resp_1",
      object: "response",
      status: "completed",
      output: [message, call],
    };
    json(200, whole);
    const { events, failure } = await outcomeOf(endpoint);
    expect(failure).toBeNull();
    expect(typesOf(events)).toEqual([
      "response.created",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.output_item.added",
      "response.function_call_arguments.delta",
      "response.function_call_arguments.done",
      "response.output_item.done",
      "response.completed",
    ]);
    expect(events.at(-1)?.["response"]).toEqual(whole);
  });

  it.each([
    [{ id: "resp_1", status: "queued", output: [] }, "malformed_answer"],
    [{ choices: [] }, "malformed_answer"],
    [null, "malformed_answer"],
    [{ error: { message: "no", code: "insufficient_quota" } }, "quota_exhausted"],
    [
      { id: "r", status: "failed", output: [], error: { code: "rate_limit_exceeded" } },
      "rate_limited",
    ],
  ])("fails JSON that is no finished response: %j", async (body, failureClass) => {
    json(200, body);
    expect((await outcomeOf(endpoint)).failure?.class).toBe(failureClass);
  });

  it("fails a page of HTML as a malformed answer", async () => {
    answer = (_, response) => {
      response.writeHead(200, { "content-type": "text/html" });
      response.end("<html>Welcome</html>");
    };
    expect((await outcomeOf(endpoint)).failure?.class).toBe("malformed_answer");
  });

  it("keeps connections for later calls", async () => {
    sse(completed);
    for (let call = 0; call < 10; call += 1) await outcomeOf(endpoint);
    // A second one is opened where the first one's body has not been read to its end yet.
    expect(sockets).toBeLessThanOrEqual(2);
  });

  it("keeps the connection to a server that ends its streams with a mark", async () => {
    answer = (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(`data: ${JSON.stringify(completed)}\n\ndata: [DONE]\n\n`);
      setImmediate(() => response.end());
    };
    for (let call = 0; call < 10; call += 1) {
      expect(await outcomeOf(endpoint)).toEqual({ events: [completed], failure: null });
    }
    expect(sockets).toBeLessThanOrEqual(2);
  });

  it("takes the end mark for the end", async () => {
    answer = (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(`data: {"type":"response.created","response":{}}\n\ndata: [DONE]\n\n`);
    };
    expect((await outcomeOf(endpoint)).failure?.class).toBe("stream_truncated");
  });

  it("lets go of a server that goes on after the terminal event", async () => {
    answer = (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      const frame = `data: ${JSON.stringify(completed)}\n\n`;
      response.write(frame + frame + frame);
    };
    const closed = new Promise<void>((done) => {
      server.on("connection", (socket) => socket.once("close", () => done()));
    });
    expect((await outcomeOf(endpoint)).events).toEqual([completed]);
    await closed;
  });

  it("does not let a server that never ends its body hold the answer back", async () => {
    answer = (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(`data: ${JSON.stringify(completed)}\n\n`);
    };
    const closed = new Promise<void>((done) => {
      server.on("connection", (socket) => socket.once("close", () => done()));
    });
    expect((await outcomeOf(endpoint)).events).toEqual([completed]);
    await closed;
  });

  it("gives up on an error body that never ends", async () => {
    await endpoint.close();
    const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
    endpoint = openModelEndpoint({
      baseUrl,
      apiKey,
      connectTimeoutMs: 2_000,
      headersTimeoutMs: 300,
    });
    answer = (_, response) => {
      response.writeHead(500, { "content-type": "application/json" });
      response.write("{");
    };
    expect((await outcomeOf(endpoint)).failure?.class).toBe("stream_silent");
  });

  it("keeps its own key out of the failure's message", async () => {
    answer = (request, response) => {
      response.writeHead(401, { "content-type": "application/json" });
      const message = `Bad key: ${request.headers.authorization} (${apiKey})`;
      response.end(JSON.stringify(apiError(message, "invalid_request_error", "invalid_api_key")));
    };
    const { failure } = await outcomeOf(endpoint);
    expect(failure?.class).toBe("authentication");
    expect(failure?.message).toBe("Bad key: Bearer [redacted] ([redacted])");
  });

  it("fails as transport when nothing listens", async () => {
    await new Promise((done) => server.close(done));
    const { failure } = await outcomeOf(endpoint);
    expect(failure?.class).toBe("transport");
    expect(failure?.message).toContain("ECONNREFUSED");
  });
});
