import { once } from "node:events";
import { createServer } from "node:http";
import { connect } from "node:net";
import type { AddressInfo } from "node:net";
import { text as textOf } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { answerBrokenRequest } from "../src/gateway/errors.ts";
import { gate, text } from "../src/simulator/server.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";

/** What comes back for these bytes until the connection is closed. */
async function answerTo(port: number, bytes: string) {
  const socket = connect(port, "127.0.0.1");
  socket.write(bytes);
  const answer = await textOf(socket);
  const [head = "", body = ""] = answer.split("\r\n\r\n");
  const { error } = JSON.parse(body) as { error: object };
  return { status: Number(head.split(" ")[1]), error };
}

const mebibyte = 1024 * 1024;

describeWith(["postgres", "temporal"], "the gateway refuses what it cannot take", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve();
  });

  afterEach(() => served.simulator.reset());
  afterAll(() => served.close());

  const create = (body: unknown, headers?: Record<string, string>) =>
    served.ask("POST", "/v1/responses", body, headers);

  const badBodies: [string, string, number, string][] = [
    ["text that is no JSON", "{input: 'Hi'}", 400, "invalid_json"],
    ["a list", "[]", 400, "invalid_json"],
    ["null", "null", 400, "invalid_json"],
    ["an empty body", "", 400, "invalid_json"],
    ["cut JSON", '{"input": "Hi', 400, "invalid_json"],
    ["keys that poison prototypes", '{"__proto__": {"a": 1}, "input": "Hi"}', 400, "invalid_json"],
    ["nesting 100,000 deep", `{"input":${"[".repeat(100_000)}`, 400, "too_deep"],
    ["objects 100,000 deep", '{"a":'.repeat(100_000), 400, "too_deep"],
    ["a stream that is no boolean", '{"input":"Hi","stream":"yes"}', 400, "invalid_value"],
    ["a store that is a text", '{"input":"Hi","store":"no"}', 400, "invalid_value"],
    ["a store that is a number", '{"input":"Hi","store":0}', 400, "invalid_value"],
    ["stream options that are a text", '{"input":"Hi","stream_options":"x"}', 400, "invalid_value"],
    [
      "obfuscation asked for in a text",
      '{"input":"Hi","stream_options":{"include_obfuscation":"true"}}',
      400,
      "invalid_value",
    ],
    [
      "an unknown stream option",
      '{"input":"Hi","stream_options":{"include_usage":true}}',
      400,
      "unknown_parameter",
    ],
    [
      "a previous response of no name",
      '{"input":"Hi","previous_response_id":""}',
      400,
      "invalid_value",
    ],
    [
      "a previous response that is false",
      '{"input":"Hi","previous_response_id":false}',
      400,
      "invalid_value",
    ],
    [
      "a previous response that is 0",
      '{"input":"Hi","previous_response_id":0}',
      400,
      "invalid_value",
    ],
    ["an input of nothing", '{"input":""}', 400, "missing_required_parameter"],
    ["no input", "{}", 400, "missing_required_parameter"],
    ["an input of numbers", '{"input":[1]}', 400, "invalid_value"],
    ["a NUL in an id", '{"input":"Hi","conversation":"a\\u0000b"}', 400, "invalid_value"],
    [
      "a NUL in an item's id",
      '{"input":[{"role":"user","content":"Hi","id":"\\u0000"}]}',
      400,
      "invalid_value",
    ],
    ["a NUL in the model", '{"input":"Hi","model":"a\\u0000b"}', 400, "invalid_value"],
    ["a lone surrogate in the model", '{"input":"Hi","model":"\\ud800"}', 400, "invalid_value"],
    [
      "an item id of 129 characters",
      `{"input":[{"role":"user","content":"Hi","id":"${"a".repeat(129)}"}]}`,
      400,
      "invalid_value",
    ],
    ["metadata of numbers", '{"input":"Hi","metadata":{"a":1}}', 400, "invalid_value"],
  ];

  test.each(badBodies)("%s", async (_name, body, status, code) => {
    const answer = await create(body);
    expect(answer).toMatchObject({ status, body: { error: { code } } });
    expect(answer.body.error.type).toBe("invalid_request_error");
    expect(answer.headers.get("x-request-id")).toMatch(/^req_/);
    expect(Object.keys(answer.body.error).toSorted()).toEqual(["code", "message", "param", "type"]);
  });

  test("a body that is too large, naming the limit", async () => {
    const answer = await create({ input: "x".repeat(17 * mebibyte) });
    expect(answer).toMatchObject({ status: 413, body: { error: { code: "body_too_large" } } });
    expect(answer.body.error.message).toContain(String(16 * mebibyte));
  });

  test("a body of unknown length that is too large", async () => {
    const piece = Buffer.alloc(mebibyte, "x");
    const response = await fetch(`${served.gateway.url}/v1/responses`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: ReadableStream.from(Array.from({ length: 20 }, () => piece)),
      duplex: "half",
    });
    expect(response.status).toBe(413);
  });

  test("a body that is no UTF-8", async () => {
    const response = await fetch(`${served.gateway.url}/v1/responses`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]),
    });
    expect(response.status).toBe(400);
  });

  test("a content type that is not JSON", async () => {
    const answer = await create('{"input":"Hi"}', { "content-type": "text/plain" });
    expect(answer).toMatchObject({
      status: 415,
      body: { error: { code: "unsupported_media_type" } },
    });
  });

  test.each([
    [
      "headers over 16 KB",
      `GET / HTTP/1.1\r\nhost: a\r\nx-a: ${"a".repeat(20_000)}`,
      431,
      "headers_too_large",
    ],
    ["what is no HTTP", "\u0016\u0003\u0001 hello\r\n\r\n", 400, "invalid_http"],
  ])("%s", async (_name, sent, status, code) => {
    const { port } = served.gateway.address;
    expect(await answerTo(port, sent)).toMatchObject({ status, error: { code, param: null } });
  });

  test("a request that does not arrive in time", async () => {
    const server = createServer({ requestTimeout: 50, connectionsCheckingInterval: 20 });
    server.on("clientError", answerBrokenRequest);
    server.on("request", (request) => void request.resume());
    await once(server.listen(0, "127.0.0.1"), "listening");
    const { port } = server.address() as AddressInfo;
    const sent = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{";
    const answer = await answerTo(port, sent).finally(() => server.close());
    expect(answer).toMatchObject({ status: 408, error: { code: "request_timeout" } });
  });

  test("idempotency keys that are too long or have spaces", async () => {
    for (const key of ["a".repeat(256), "a b", ""]) {
      const answer = await create({ input: "Hi" }, { "idempotency-key": key });
      expect(answer).toMatchObject({ status: 400, body: { error: { param: "Idempotency-Key" } } });
    }
  });

  const badPaths: [string, number, string][] = [
    ["/v1/nothing", 404, "route_not_found"],
    ["/v1/responses/input_tokens/more", 404, "route_not_found"],
    ["/v1/responses/a%00b", 400, "invalid_value"],
    ["/v1/responses/%E0%A4%A", 400, "invalid_value"],
    [`/v1/responses/${"a".repeat(200)}`, 400, "invalid_value"],
    ["/v1/responses/resp_none", 404, "response_not_found"],
    ["/v1/responses/resp_none?stream=perhaps", 400, "invalid_value"],
    ["/v1/responses/resp_none?stream=true&starting_after=-1", 400, "invalid_value"],
    ["/v1/responses/resp_none?stream=true&starting_after=x", 400, "invalid_value"],
    ["/v1/responses/resp_none?stream=true&starting_after=1e300", 400, "invalid_value"],
    ["/v1/responses/resp_none?starting_after=1", 400, "invalid_value"],
    ["/v1/responses/resp_none?other=1", 400, "unknown_parameter"],
    ["/v1/responses/resp_none/input_items?order=up", 400, "invalid_value"],
    ["/v1/responses/resp_none/input_items?limit=0", 400, "invalid_value"],
    ["/v1/conversations/conv_none", 404, "conversation_not_found"],
    ["/v1/conversations/conv_none/items?limit=101", 400, "invalid_value"],
    ["/v1/conversations/a%00b/items", 400, "invalid_value"],
    ["/v1/conversations/conv_none/items/msg_none", 404, "conversation_not_found"],
    ["/v1/models/none", 404, "model_not_found"],
    ["/turnkeeper/v1/turns?status=done", 400, "invalid_value"],
    ["/turnkeeper/v1/turns?agent=a%00b", 400, "invalid_value"],
    ["/turnkeeper/v1/turns?created_after=yesterday", 400, "invalid_value"],
    ["/turnkeeper/v1/turns/resp_none", 404, "response_not_found"],
  ];

  test.each(badPaths)("GET %s", async (path, status, code) => {
    expect(await served.ask("GET", path)).toMatchObject({ status, body: { error: { code } } });
  });

  const routes = [
    "POST /v1/responses",
    "POST /v1/responses/resp_none/cancel",
    "DELETE /v1/responses/resp_none",
    "GET /v1/responses/resp_none/input_items",
    "POST /v1/conversations",
    "GET /v1/conversations/conv_none",
    "POST /v1/conversations/conv_none",
    "DELETE /v1/conversations/conv_none",
    "POST /v1/conversations/conv_none/items",
    "DELETE /v1/conversations/conv_none/items/msg_none",
    "GET /v1/models",
    "GET /turnkeeper/v1/turns",
    "GET /turnkeeper/v1/turns/resp_none",
    "GET /turnkeeper/v1/cost",
    "POST /turnkeeper/v1/turns/resp_none/replay",
    "GET /turnkeeper/v1/turns/resp_none/comparison",
  ];

  test.each(routes)("a query parameter that nobody knows, of %s", async (route) => {
    const [method = "", path] = route.split(" ");
    const body = method === "POST" ? {} : undefined;
    expect(await served.ask(method, `${path}?dry_run=true`, body)).toMatchObject({
      status: 400,
      body: { error: { code: "unknown_parameter", param: "dry_run" } },
    });
  });

  test("a stream is refused before it begins", async () => {
    const { client, simulator } = served;
    const held = gate(1);
    simulator.script(text("one two", { pauseAfter: held }));
    const { id } = await client.responses.create({ input: "Hi", background: true });
    await held.reached;
    const answer = await served.ask("GET", `/v1/responses/${id}?stream=true&starting_after=900`);
    expect(answer).toMatchObject({ status: 400, body: { error: { param: "starting_after" } } });
    held.open();
    await Array.fromAsync(await client.responses.retrieve(id, { stream: true }));
  });

  test("takes no harm: a NUL and a lone surrogate come back as they went in", async () => {
    const { client, simulator } = served;
    const odd = "a\u0000b\ud800c\udfffd";
    simulator.script(text("ok"), text("ok"));
    const { body } = await create({ input: odd, metadata: { odd } });
    expect(body).toMatchObject({ status: "completed", metadata: { odd } });
    expect(simulator.requests[0]?.items[0]).toMatchObject({ content: [{ text: odd }] });
    const items = await client.responses.inputItems.list(body.id);
    expect(items.data[0]).toMatchObject({ content: [{ text: odd }] });
    const next = await create({ input: "And?", previous_response_id: body.id });
    expect(next.status).toBe(200);
    expect(simulator.requests[1]?.items[0]).toMatchObject({ content: [{ text: odd }] });
  });

  test("takes 10 MB of input", async () => {
    const { simulator } = served;
    simulator.script(text("ok"));
    const input = "x".repeat(10 * mebibyte);
    expect(await create({ input })).toMatchObject({ status: 200, body: { status: "completed" } });
    expect(simulator.requests[0]?.items[0]).toMatchObject({ content: [{ text: input }] });
  });

  test("the same key gives the same turn, and with another body a clear error", async () => {
    const { simulator } = served;
    simulator.script(text("ok"));
    const key = { "idempotency-key": "order-7" };
    const first = await create({ input: "Hi" }, key);
    const again = await create({ input: "Hi" }, key);
    expect(again.body).toEqual(first.body);
    const streamed = await fetch(`${served.gateway.url}/v1/responses`, {
      method: "POST",
      headers: { "content-type": "application/json", ...key },
      body: JSON.stringify({ input: "Hi", stream: true }),
    });
    expect(streamed.headers.get("x-turnkeeper-turn-id")).toBe(first.body.id);
    expect(await streamed.text()).toContain("response.completed");
    const other = await create({ input: "Ho" }, key);
    expect(other).toMatchObject({
      status: 422,
      body: { error: { code: "idempotency_key_reused" } },
    });
    simulator.assertConsumed();
  });

  test("keeps a harmless request id of the caller, and no other", async () => {
    const given = await served.ask("GET", "/v1/models", undefined, { "x-request-id": "trace-7" });
    expect(given.headers.get("x-request-id")).toBe("trace-7");
    const odd = await served.ask("GET", "/v1/models", undefined, { "x-request-id": "a b" });
    expect(odd.headers.get("x-request-id")).toMatch(/^req_/);
  });
});

describeWith(["postgres", "temporal"], "a gateway whose agents have no default", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve({ agents: [defineAgent({ name: "support", model: "gpt-test" })] });
  });

  afterAll(() => served.close());

  test.each([
    ["an agent that is not registered", "sales"],
    ["no agent", null],
  ])("refuses a request for %s", async (_name, model) => {
    expect(await served.ask("POST", "/v1/responses", { input: "Hi", model })).toMatchObject({
      status: 404,
      body: { error: { code: "unknown_agent", type: "invalid_request_error", param: "model" } },
    });
  });
});
