import { once } from "node:events";
import { request as httpRequest } from "node:http";
import type { IncomingMessage } from "node:http";
import type OpenAI from "openai";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Followers } from "../src/gateway/followers.ts";
import { gate, text } from "../src/simulator/server.ts";
import { createConversation } from "../src/store/conversations.ts";
import type { Queryable } from "../src/store/database.ts";
import { setCancelTime } from "../src/store/disconnects.ts";
import { disconnectGraceMs } from "../src/turn/limits.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";
import { admit } from "./setup/storeTurns.ts";

const ending = { "x-turnkeeper-on-disconnect": "cancel" };

/** What an SDK sends when it repeats a request by itself. */
const repeated = { "x-stainless-retry-count": "1" };

describeWith(["postgres", "temporal"], "a turn that is to end with its followers", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve({ janitor: { roundMs: 200, patienceMs: 60_000 } });
  });

  afterAll(() => served.close());

  afterEach(() => served.simulator.reset());

  /** A turn that has said something and pauses, with the connection of its starter. */
  async function startPaused(body: object, headers: Record<string, string> = ending) {
    const { simulator, gateway } = served;
    const held = gate(1);
    simulator.script(text("One two", { pauseAfter: held }));
    const sent = httpRequest(`${gateway.url}/v1/responses`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      agent: false,
    });
    sent.on("error", () => {});
    const answered = once(sent, "response") as Promise<[IncomingMessage]>;
    answered.catch(() => {});
    sent.end(JSON.stringify(body));
    await held.reached;
    const [row] = await served.database.query<{ id: string }>(
      "SELECT id FROM turns ORDER BY created_at DESC LIMIT 1",
    );
    return { id: row?.id ?? "", sent, answered, open: held.open };
  }

  /** In how many milliseconds the turn is cancelled; `null` where it is not to be. */
  async function cancelIn(id: string): Promise<number | null> {
    const [row] = await served.database.query<{ ms: number | null }>(
      "SELECT (extract(epoch FROM cancel_at - now()) * 1000)::float8 AS ms FROM turns WHERE id = $1",
      [id],
    );
    return row?.ms ?? null;
  }

  const untilLeft = (id: string) => expect.poll(() => cancelIn(id)).not.toBeNull();

  const untilFollowed = (id: string) => expect.poll(() => cancelIn(id)).toBeNull();

  async function letGraceEnd(id: string): Promise<void> {
    await untilLeft(id);
    await served.database.query("UPDATE turns SET cancel_at = now() WHERE id = $1", [id]);
  }

  async function streamOf(id: string): Promise<OpenAI.Responses.ResponseStreamEvent[]> {
    const { client } = served;
    return Array.fromAsync(await client.responses.retrieve(id, { stream: true }));
  }

  test.each([
    ["streams", true],
    ["waits for the answer", false],
  ])("is cancelled when its starter, who %s, goes away", async (_, stream) => {
    const { sent, id } = await startPaused({ input: "Hi", stream });
    sent.destroy();
    await letGraceEnd(id);
    await served.simulator.waitFor("aborted");
    const events = await streamOf(id);
    expect(events.at(-1)).toMatchObject({
      response: { status: "cancelled", output: [{ status: "incomplete" }] },
    });
  });

  test("has a grace period, which the request may choose within bounds", async () => {
    const chosen = { ...ending, "x-turnkeeper-disconnect-grace-ms": "60000" };
    const first = await startPaused({ input: "Hi", stream: true }, chosen);
    first.sent.destroy();
    await untilLeft(first.id);
    expect(await cancelIn(first.id)).toBeGreaterThan(disconnectGraceMs.default);
    first.open();
    const second = await startPaused({ input: "Hi", stream: true });
    second.sent.destroy();
    await untilLeft(second.id);
    expect(await cancelIn(second.id)).toBeLessThanOrEqual(disconnectGraceMs.default);
    second.open();
    for (const wrong of ["0", "1e9", "soon"]) {
      const headers = { ...ending, "x-turnkeeper-disconnect-grace-ms": wrong };
      const refused = await served.ask("POST", "/v1/responses", { input: "Hi" }, headers);
      expect(refused).toMatchObject({ status: 400, body: { error: { code: "invalid_value" } } });
    }
  });

  test("goes on when somebody streams it within that time, and ends with them instead", async () => {
    const { client, simulator } = served;
    const { sent, id } = await startPaused({ input: "Hi", stream: true });
    sent.destroy();
    await untilLeft(id);
    const stream = await client.responses.retrieve(id, { stream: true });
    await untilFollowed(id);
    stream.controller.abort();
    await letGraceEnd(id);
    await simulator.waitFor("aborted");
    expect((await streamOf(id)).at(-1)).toMatchObject({ response: { status: "cancelled" } });
  });

  test("goes on when its request is sent again within that time", async () => {
    const { ask } = served;
    const body = { input: "Sent again" };
    const { sent, id, open } = await startPaused(body);
    sent.destroy();
    await untilLeft(id);
    const again = ask("POST", "/v1/responses", body, { ...ending, ...repeated });
    await untilFollowed(id);
    open();
    expect((await again).body).toMatchObject({ id, status: "completed" });
  });

  test("goes on while another connection follows it, at whichever gateway", async () => {
    const { client, database } = served;
    const { sent, id, open } = await startPaused({ input: "Hi", stream: true });
    const stream = await client.responses.retrieve(id, { stream: true });
    sent.destroy();
    // Another gateway sees its last follower go, and knows of none here.
    await setCancelTime(database, "default", id);
    await untilFollowed(id);
    open();
    const events = await Array.fromAsync(stream);
    expect(events.at(-1)?.type).toBe("response.completed");
  });

  test("that waits in a queue is cancelled by the janitor, without the gateway", async () => {
    const { client, database } = served;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const holder = await startPaused({ input: "Hold", conversation, stream: true });
    const queue = { ...ending, "x-turnkeeper-when-busy": "queue" };
    const gateway = await served.startGateway();
    const leaving = served.openClient({ baseURL: `${gateway.url}/v1` });
    const body = { input: "Wait", conversation, stream: true } as const;
    const stream = await leaving.responses.create(body, { headers: queue });
    const first = await stream[Symbol.asyncIterator]().next();
    const { response } = first.value as OpenAI.Responses.ResponseCreatedEvent;
    await gateway.close();
    await letGraceEnd(response.id);
    // Whoever streamed it would keep it.
    const status = async () => (await client.responses.retrieve(response.id)).status;
    await expect.poll(status).toBe("cancelled");
    holder.open();
    expect((await streamOf(holder.id)).at(-1)?.type).toBe("response.completed");
  });

  test("is left for good, although what was sent while it was followed comes late", async () => {
    const { database } = served;
    const turn = await admit(database, {}, { disconnectGraceMs: 60_000 });
    const late = gate();
    const cleared = Promise.withResolvers<void>();
    let clears = 0;
    const queryable: Queryable = {
      async query(sql, parameters) {
        // The second one comes by the clock.
        const isLate = sql.includes("SET cancel_at = NULL") && ++clears === 2;
        if (isLate) await late.pass();
        const rows = await database.query<never>(sql, parameters);
        if (isLate) cleared.resolve();
        return rows;
      },
    };
    const followers = new Followers(queryable, pino({ level: "silent" }));
    const connection = new AbortController();
    const answered = followers.answer(turn, connection.signal, async () => {
      await late.reached;
      connection.abort();
    });
    await late.reached;
    // A leaving that does not wait for what is late is on record by then.
    for (let trip = 0; trip < 50; trip++) await database.query("SELECT 1");
    late.open();
    await Promise.all([answered, cleared.promise]);
    await followers.close();
    expect(await cancelIn(turn.id)).not.toBeNull();
  });

  test("without the wish goes on for ever", async () => {
    const { sent, id, open } = await startPaused({ input: "Hi", stream: true }, {});
    sent.destroy();
    open();
    expect((await streamOf(id)).at(-1)?.type).toBe("response.completed");
    expect(await cancelIn(id)).toBeNull();
  });
});
