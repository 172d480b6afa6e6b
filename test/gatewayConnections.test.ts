import { once } from "node:events";
import { request as httpRequest } from "node:http";
import type { IncomingMessage } from "node:http";
import { connect } from "node:net";
import type OpenAI from "openai";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Turnkeeper } from "../src/client.ts";
import type { ClientParts } from "../src/clientParts.ts";
import { calls, gate, text } from "../src/simulator/server.ts";
import { openPostgres } from "../src/store/postgres.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { ask, serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";

/** What the openai package sends when it repeats a request by itself. */
const repeated = { "x-stainless-retry-count": "1" };

describeWith(["postgres", "temporal"], "connections to the gateway", () => {
  let served: Served;

  beforeAll(async () => {
    const limits = { maxOutputBytes: 16 * 1024 * 1024 };
    served = await serve({ agents: [defineAgent({ name: "default", model: "gpt-test", limits })] });
  });

  afterEach(() => served.simulator.reset());
  afterAll(() => served.close());

  /** Sends a request whose answer the caller reads, or cuts off, by itself. */
  async function open(body: object, url = served.gateway.url) {
    const sent = httpRequest(`${url}/v1/responses`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      agent: false,
    });
    sent.on("error", () => {});
    sent.end(JSON.stringify(body));
    return sent;
  }

  async function answerOf(sent: Awaited<ReturnType<typeof open>>): Promise<IncomingMessage> {
    const [answer] = (await once(sent, "response")) as [IncomingMessage];
    return answer;
  }

  const turnsOf = (input: string) =>
    served.database.query<{ id: string; disconnected: boolean }>(
      `SELECT id, disconnected_at IS NOT NULL AS disconnected FROM turns WHERE request LIKE $1`,
      [`%${input}%`],
    );

  /** The id of the one turn that was started with this input, once it is on record. */
  async function onlyTurn(input: string, expected: object = {}): Promise<string> {
    await expect.poll(() => turnsOf(input)).toMatchObject([expected]);
    return (await turnsOf(input))[0]?.id ?? "";
  }

  test("a client that goes away cancels nothing", async () => {
    const { client, simulator } = served;
    const held = gate(1);
    simulator.script(text("one two", { pauseAfter: held }));
    const stream = await client.responses.create({ input: "leaving", stream: true });
    await held.reached;
    stream.controller.abort();
    const id = await onlyTurn("leaving");
    held.open();
    const rest = await Array.fromAsync(await client.responses.retrieve(id, { stream: true }));
    expect(rest.at(-1)?.type).toBe("response.completed");
  });

  test("a request that an SDK sends again after its socket was cut joins the turn it had started", async () => {
    const { simulator, ask } = served;
    const held = gate(1);
    simulator.script(text("only once", { pauseAfter: held }));
    const body = { input: "cut while waiting" };
    const sent = await open(body);
    await held.reached;
    sent.destroy();
    const id = await onlyTurn("cut while waiting", { disconnected: true });
    const second = ask("POST", "/v1/responses", body, repeated);
    held.open();
    expect((await second).body).toMatchObject({ id, status: "completed" });
    expect(simulator.bill).toHaveLength(1);
    const third = await ask("POST", "/v1/responses", body, { ...repeated, "idempotency-key": "k" });
    expect(third.body.id).not.toBe(id);
  });

  test("a request that is sent again because its gateway was killed joins the turn that goes on", async () => {
    const { simulator, ask } = served;
    const held = gate(1);
    simulator.script(text("only once", { pauseAfter: held }), text("its own"));
    const body = { input: "killed under it" };
    // A killed gateway notes no broken connection, and neither does one that knows of none.
    const first = answerOf(await open(body));
    await held.reached;
    const id = await onlyTurn("killed under it");
    const second = ask("POST", "/v1/responses", body, repeated);
    const given = "SELECT id FROM turns WHERE id = $1 AND reattached_at IS NOT NULL";
    await expect.poll(() => served.database.query(given, [id])).toHaveLength(1);
    const third = await ask("POST", "/v1/responses", body, repeated);
    held.open();
    expect((await second).body).toMatchObject({ id, status: "completed" });
    expect(third.body.id).not.toBe(id);
    (await first).resume();
    expect(simulator.bill).toHaveLength(2);
  });

  test("the SDK itself, cut off, gets the answer of its first request", async () => {
    const { simulator, openClient } = served;
    const held = gate(1);
    simulator.script(text("only once", { pauseAfter: held }));
    const input = "cut in the SDK";
    const client = openClient({
      maxRetries: 2,
      fetch: async (url, init) => {
        const isFirst = new Headers(init?.headers).get("x-stainless-retry-count") === "0";
        if (!isFirst) return fetch(url, init);
        const cut = new AbortController();
        const answer = fetch(url, { ...init, signal: cut.signal });
        await held.reached;
        cut.abort();
        await answer.catch(() => {});
        held.open();
        throw new TypeError("fetch failed");
      },
    });
    const response = await client.responses.create({ input });
    expect(response.output_text).toBe("only once");
    expect(await onlyTurn(input)).toBe(response.id);
  });

  test("the same request from somebody whose connection is whole starts a turn of its own", async () => {
    const { simulator, ask } = served;
    simulator.script(text("first"), text("second"));
    const body = { input: "asked twice" };
    const first = await ask("POST", "/v1/responses", body);
    const second = await ask("POST", "/v1/responses", body, repeated);
    expect(second.body.id).not.toBe(first.body.id);
    simulator.assertConsumed();
  });

  test("a slow subscriber gets everything and holds up nobody", async () => {
    const { client, simulator } = served;
    // With the whole text in each of the last events, more than the buffers of two sockets hold.
    const words = 4_000;
    const long = Array.from({ length: words }, (_, at) => `${at}-${"x".repeat(1_000)} `);
    simulator.script(text(long.join(""), { deltas: long }), text("quick"));
    const answer = await answerOf(await open({ input: "long", stream: true }));
    // Nobody reads it: it fills the sockets and stays there.
    answer.pause();
    const id = String(answer.headers["x-turnkeeper-turn-id"]);
    for await (const event of await client.responses.retrieve(id, { stream: true })) void event;
    const quick = await client.responses.create({ input: "short" });
    expect(quick.output_text).toBe("quick");
    let body = "";
    for await (const chunk of answer.setEncoding("utf8")) body += String(chunk);
    const events = body
      .split("\n\n")
      .flatMap((frame) => /^data: (.*)$/m.exec(frame)?.[1] ?? [])
      .map((json) => JSON.parse(json) as OpenAI.Responses.ResponseStreamEvent);
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
    const deltas = events.flatMap((event) =>
      event.type === "response.output_text.delta" ? [event.delta] : [],
    );
    expect(deltas.join("") === long.join("")).toBe(true);
    expect(events.at(-1)?.type).toBe("response.completed");
  });

  test("a silent stream shows that it lives, in a way that clients do not see", async () => {
    const { simulator, startGateway, openClient } = served;
    const gateway = await startGateway({ keepAliveMs: 20 });
    const held = gate(1);
    simulator.script(text("one two", { pauseAfter: held }));
    const answer = await answerOf(await open({ input: "silence", stream: true }, gateway.url));
    let body = "";
    for await (const chunk of answer.setEncoding("utf8")) {
      body += String(chunk);
      if (body.split(": keep-alive\n\n").length > 3) held.open();
    }
    expect(body).toContain("event: response.completed\n");
    const id = String(answer.headers["x-turnkeeper-turn-id"]);
    const client = openClient({ baseURL: `${gateway.url}/v1` });
    const events = await Array.fromAsync(await client.responses.retrieve(id, { stream: true }));
    expect(events.at(-1)?.type).toBe("response.completed");
  });

  test("a gateway that closes lets go of its streams, which go on elsewhere by number", async () => {
    const { simulator, startGateway, openClient, client } = served;
    const gateway = await startGateway();
    const [held, later] = [gate(1), gate(1)];
    const [one, two] = [{ pauseAfter: held }, { pauseAfter: later }];
    simulator.script(text("one two three", one), text("later", two));
    const leaving = openClient({ baseURL: `${gateway.url}/v1` });
    const stream = await leaving.responses.create({ input: "moving", stream: true });
    const seen: OpenAI.Responses.ResponseStreamEvent[] = [];
    const reading = (async () => {
      for await (const event of stream) seen.push(event);
    })();
    const settled = reading.then(
      () => "ended",
      () => "broke off",
    );
    await held.reached;
    const waiting = open({ input: "waiting at the close" }, gateway.url).then(answerOf);
    await onlyTurn("waiting at the close");
    await gateway.close();
    expect(await settled).toBe("broke off");
    const refused = await waiting;
    expect(refused.statusCode).toBe(503);
    await expect(fetch(`${gateway.url}/healthz`)).rejects.toThrow("fetch failed");
    held.open();
    later.open();
    const { response } = seen[0] as OpenAI.Responses.ResponseCreatedEvent;
    const rest = await client.responses.retrieve(response.id, {
      stream: true,
      starting_after: seen.at(-1)?.sequence_number ?? -1,
    });
    const all = [...seen, ...(await Array.fromAsync(rest))];
    expect(all.map((event) => event.sequence_number)).toEqual(all.map((_, at) => at));
    expect(all.at(-1)?.type).toBe("response.completed");
    const body = { input: "waiting at the close" };
    const again = await served.ask("POST", "/v1/responses", body, repeated);
    expect(again.body).toMatchObject({ status: "completed" });
    await onlyTurn("waiting at the close");
  });

  test("health is told without a key, and readiness names what is missing", async () => {
    const { startGateway, engine } = served;
    expect(await served.ask("GET", "/healthz")).toMatchObject({
      status: 200,
      body: { status: "ok" },
    });
    expect(await served.ask("GET", "/readyz")).toMatchObject({
      status: 200,
      body: { status: "ready", database: "ok", temporal: "ok" },
    });
    const lost = await startGateway({
      engine: { ...engine, currentRun: () => Promise.reject(new Error("away")) },
    });
    const answer = await fetch(`${lost.url}/readyz`);
    expect(answer.status).toBe(503);
    expect(await answer.json()).toMatchObject({ database: "ok", temporal: "unreachable" });
  });

  test("a database that is away is said to be away, and nothing is let in", async () => {
    const database = openPostgres({ url: "postgres://127.0.0.1:1/none", connectTimeoutMs: 500 });
    const gateway = await served.startGateway({ database });
    expect(await ask(`${gateway.url}/v1/models`, "GET")).toMatchObject({
      status: 503,
      body: { error: { code: "store_unavailable", type: "server_error" } },
    });
    expect(await ask(`${gateway.url}/readyz`, "GET")).toMatchObject({
      status: 503,
      body: { database: "unreachable", temporal: "ok" },
    });
    await database.close();
  });

  test("a fault of the gateway is logged with the request's id, and told without its cause", async () => {
    const lines: string[] = [];
    const log = pino({ level: "error" }, { write: (line: string) => lines.push(line) });
    const turnkeeper = new Turnkeeper({} as ClientParts, "default");
    const gateway = await served.startGateway({ turnkeeper, log });
    const answer = await ask(`${gateway.url}/v1/responses`, "POST", { input: "Hi" });
    expect(answer).toMatchObject({ status: 500, body: { error: { code: "internal" } } });
    const id = answer.headers.get("x-request-id") ?? "";
    expect(answer.body.error.message).toContain(id);
    expect(JSON.stringify(answer.body)).not.toMatch(/undefined|\.ts/);
    expect(lines.join("")).toContain(id);
    expect(lines.join("")).toMatch(/turns\.ts/);
  });

  test("a request that is broken off in its body starts nothing", async () => {
    const { port } = served.gateway.address;
    const socket = connect(port, "127.0.0.1");
    await once(socket, "connect");
    socket.write(
      'POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"input":"half a body',
    );
    socket.destroy();
    await once(socket, "close");
    expect((await served.ask("GET", "/healthz")).status).toBe(200);
    const rows = await served.database.query(
      "SELECT id FROM turns WHERE request LIKE '%half a body%'",
    );
    expect(rows).toEqual([]);
  });

  test("a turn's story names its steps, calls and cost", async () => {
    const { client, simulator, ask } = served;
    simulator.script(
      calls([{ name: "f", arguments: {} }], { usage: { inputTokens: 5, outputTokens: 2 } }),
    );
    const tool = { type: "function" as const, name: "f", parameters: {}, strict: false };
    const response = await client.responses.create({ input: "story", tools: [tool] });
    const { body } = await ask("GET", `/turnkeeper/v1/turns/${response.id}`);
    expect(body).toMatchObject({
      id: response.id,
      object: "turn",
      status: "completed",
      agent: "default",
      failure: null,
      cost: { usd: 0, is_complete: false },
      steps: [{ number: 1, kind: "model", name: "gpt-test", state: "finished", attempt: 1 }],
      model_calls: [
        { step: 1, outcome: "used", input_tokens: 5, output_tokens: 2, certainty: "exact" },
      ],
    });
    expect(Date.parse(body.ended_at)).toBeGreaterThanOrEqual(Date.parse(body.created_at));
  });

  test("turns are listed by what they are, page by page", async () => {
    const { ask, client, simulator } = served;
    simulator.script(text("1"), text("2"), text("3"));
    const { id } = await client.conversations.create();
    const ids: string[] = [];
    for (const input of ["a", "b", "c"]) {
      ids.unshift((await client.responses.create({ conversation: id, input })).id);
    }
    const list = async (query: string) =>
      (await ask("GET", `/turnkeeper/v1/turns?conversation=${id}${query}`)).body;
    const idsOf = (page: { data: { id: string }[] }) => page.data.map((turn) => turn.id);
    expect(idsOf(await list(""))).toEqual(ids);
    const page = await list("&limit=2");
    expect(page).toMatchObject({ has_more: true, last_id: ids[1] });
    expect(idsOf(await list(`&after=${page.last_id}`))).toEqual(ids.slice(2));
    expect(idsOf(await list("&status=completed&agent=default"))).toEqual(ids);
    expect(idsOf(await list("&status=failed"))).toEqual([]);
    const [newest] = page.data;
    expect(idsOf(await list(`&created_after=${newest.created_at}`))).toEqual([ids[0]]);
    expect(idsOf(await list(`&created_before=${newest.created_at}`))).toEqual(ids.slice(1));
    expect(idsOf(await list("&created_before=1"))).toEqual([]);
    await client.responses.delete(ids[0] ?? "");
    expect(idsOf(await list(""))).toEqual(ids.slice(1));
  });
});
