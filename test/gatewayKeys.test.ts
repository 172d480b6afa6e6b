import { createHash } from "node:crypto";
import { once } from "node:events";
import { request as httpRequest } from "node:http";
import type { IncomingMessage } from "node:http";
import OpenAI from "openai";
import { afterAll, beforeAll, expect, test } from "vitest";
import { text } from "../src/simulator/server.ts";
import { createApiKey, revokeApiKey } from "../src/store/apiKeys.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { runCommand } from "./setup/runCommand.ts";
import { describeWith } from "./setup/servers.ts";

/** `fetch` does not let the Host header be set. */
async function statusFor(url: string, headers: Record<string, string>): Promise<number> {
  const sent = httpRequest(`${url}/v1/models`, { headers, agent: false });
  sent.end();
  const [answer] = (await once(sent, "response")) as [IncomingMessage];
  answer.resume();
  return answer.statusCode ?? 0;
}

describeWith(["postgres", "temporal"], "without any API key", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve();
  });

  afterAll(() => served.close());

  test("no other machine is listened to, and the error says how to make a key", async () => {
    for (const host of ["0.0.0.0", "::", "10.0.0.1", "example.com"]) {
      await expect(served.startGateway({ host })).rejects.toThrow("turnkeeper key create");
    }
    const local = await served.startGateway({ host: "localhost" });
    expect((await fetch(`${local.url}/v1/models`)).status).toBe(200);
  });

  test("any key or none will do", async () => {
    const { url } = served.gateway;
    expect(await statusFor(url, {})).toBe(200);
    expect(await statusFor(url, { authorization: "Bearer anything" })).toBe(200);
  });

  test("a name that was bound to this machine, a page from elsewhere and a proxy get nothing", async () => {
    const { url, address } = served.gateway;
    expect(await statusFor(url, { host: "evil.example" })).toBe(403);
    expect(await statusFor(url, { host: `evil.example:${address.port}` })).toBe(403);
    expect(await statusFor(url, { host: "localhost.evil.example" })).toBe(403);
    expect(await statusFor(url, { host: "127.0.0.1.evil.example" })).toBe(403);
    expect(await statusFor(url, { origin: "https://evil.example" })).toBe(403);
    expect(await statusFor(url, { origin: "null" })).toBe(403);
    for (const header of ["forwarded", "x-forwarded-for", "x-forwarded-host"]) {
      expect(await statusFor(url, { [header]: "127.0.0.1" })).toBe(403);
    }
    expect(await statusFor(url, { host: "localhost" })).toBe(200);
    expect(await statusFor(url, { host: `[::1]:${address.port}` })).toBe(200);
    expect(await statusFor(url, { origin: "http://localhost:3000" })).toBe(200);
  });
});

describeWith(["postgres", "temporal"], "with its last API key revoked", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve();
  });

  afterAll(() => served.close());

  test("no gateway opens, whether others can reach it or not", async () => {
    const key = await createApiKey(served.database, "default", "only");
    await revokeApiKey(served.database, key.id);
    for (const host of ["0.0.0.0", "127.0.0.1"]) {
      const { address } = await served.startGateway({ host });
      const url = `http://127.0.0.1:${address.port}`;
      expect(await statusFor(url, {})).toBe(401);
      expect(await statusFor(url, { authorization: `Bearer ${key.secret}` })).toBe(401);
    }
  });
});

describeWith(["postgres", "temporal"], "with API keys", () => {
  let served: Served;
  let one: OpenAI;
  let other: OpenAI;
  let url: string;

  beforeAll(async () => {
    served = await serve();
    const { database } = served;
    const keyOne = await createApiKey(database, "one", "test");
    const keyOther = await createApiKey(database, "other", "test");
    ({ url } = await served.startGateway({ host: "0.0.0.0" }));
    url = url.replace("0.0.0.0", "127.0.0.1");
    const baseURL = `${url}/v1`;
    one = served.openClient({ baseURL, apiKey: keyOne.secret });
    other = served.openClient({ baseURL, apiKey: keyOther.secret });
  });

  afterAll(() => served.close());

  test("a wrong key and a missing one are refused, saying what to do", async () => {
    const client = served.openClient({ baseURL: `${url}/v1`, apiKey: "tk-wrong" });
    const refused = client.responses.create({ input: "Hi" });
    await expect(refused).rejects.toThrow(OpenAI.AuthenticationError);
    await expect(refused).rejects.toMatchObject({
      code: "invalid_api_key",
      // OpenAI's own: test/wire/authentication.key.http.
      type: "invalid_request_error",
    });
    await expect(refused).rejects.toThrow("turnkeeper key create");
    expect(await statusFor(url, {})).toBe(401);
    expect(await statusFor(url, { authorization: "Basic abc" })).toBe(401);
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
  });

  test("a key is enough, whatever name the gateway is called by", async () => {
    const secret = one.apiKey as string;
    const authorization = `Bearer ${secret}`;
    expect(await statusFor(url, { authorization, host: "turnkeeper.example" })).toBe(200);
  });

  test("a revoked key is refused", async () => {
    const { database } = served;
    const key = await createApiKey(database, "one", "short-lived");
    await revokeApiKey(database, key.id);
    expect(await statusFor(url, { authorization: `Bearer ${key.secret}` })).toBe(401);
  });

  const commandsTimeoutMs = 120_000;

  test(
    "the commands make a key, list it without its secret, and revoke it",
    async () => {
      const environment = { DATABASE_URL: served.databaseUrl };
      const key = (...args: string[]) => runCommand(["key", ...args], environment);
      const created = await key("create", "--project", "shop", "--name", "till");
      expect(created.code).toBe(0);
      const secret = created.output.trim();
      expect(secret).toMatch(/^tk-[\w-]{43}$/);
      expect(created.errors).not.toContain(secret);
      const id = /Key (\w+) of project shop/.exec(created.errors)?.[1] ?? "";
      const authorization = `Bearer ${secret}`;
      expect(await statusFor(url, { authorization })).toBe(200);
      const listed = await key("list");
      expect(listed.output).toMatch(new RegExp(`${id}.*shop.*till`));
      expect(listed.output).not.toContain(secret);
      expect(await key("revoke", id)).toMatchObject({ code: 0 });
      // One that has not seen the key; others take it for some seconds more.
      const gateway = await served.startGateway();
      expect(await statusFor(gateway.url, { authorization })).toBe(401);
      expect(await key("revoke", id)).toMatchObject({ code: 1 });
    },
    commandsTimeoutMs,
  );

  test("of a key only a hash is stored [15]", async () => {
    const { database } = served;
    const { id, secret } = await createApiKey(database, "one", "hashed");
    const [row] = await database.query<{ secret_hash: Buffer; shown: string }>(
      "SELECT secret_hash, api_keys::text AS shown FROM api_keys WHERE id = $1",
      [id],
    );
    expect(row?.secret_hash).toEqual(createHash("sha256").update(secret).digest());
    const random = secret.replace(/^tk-/, "");
    for (const plain of [random, Buffer.from(secret).toString("hex")]) {
      expect(row?.shown).not.toContain(plain);
    }
  });

  test("what belongs to another project is not there", async () => {
    served.simulator.script(text("secret"));
    const conversation = await one.conversations.create();
    const { id } = await one.responses.create({ input: "Hi", conversation: conversation.id });
    const items = await one.conversations.items.list(conversation.id);
    const itemId = items.data[0]?.id ?? "";
    const where = { conversation_id: conversation.id };
    const attempts = [
      () => other.responses.retrieve(id),
      async () => Array.fromAsync(await other.responses.retrieve(id, { stream: true })),
      () => other.responses.cancel(id),
      () => other.responses.delete(id),
      () => other.responses.inputItems.list(id),
      () => other.conversations.retrieve(conversation.id),
      () => other.conversations.update(conversation.id, { metadata: {} }),
      () => other.conversations.delete(conversation.id),
      () => other.conversations.items.list(conversation.id),
      () =>
        other.conversations.items.create(conversation.id, {
          items: [{ role: "user", content: "x" }],
        }),
      () => other.conversations.items.retrieve(itemId, where),
      () => other.conversations.items.delete(itemId, where),
      () => other.responses.create({ input: "Hi", conversation: conversation.id }),
      () => other.get(`${url}/turnkeeper/v1/turns/${id}`),
    ];
    for (const attempt of attempts) await expect(attempt()).rejects.toThrow(OpenAI.NotFoundError);
    const after = other.responses.create({ input: "Hi", previous_response_id: id });
    await expect(after).rejects.toMatchObject({ status: 400, code: "previous_response_not_found" });
    expect(await other.get(`${url}/turnkeeper/v1/turns`)).toMatchObject({ data: [] });
    expect((await one.responses.retrieve(id)).output_text).toBe("secret");
  });

  test("the same idempotency key means another turn in another project", async () => {
    served.simulator.script(text("for one"), text("for other"));
    const options = { headers: { "idempotency-key": "same" } };
    const mine = await one.responses.create({ input: "Hi" }, options);
    const theirs = await other.responses.create({ input: "Hi" }, options);
    expect(theirs.id).not.toBe(mine.id);
  });
});
