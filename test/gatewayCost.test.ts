import { afterAll, beforeAll, expect, test } from "vitest";
import { fault, text } from "../src/simulator/server.ts";
import { createApiKey } from "../src/store/apiKeys.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { ask, serve } from "./setup/gateway.ts";
import type { Asked, Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";

const agents = ["default", "other"].map((name) => defineAgent({ name, model: "gpt-6.1-terra" }));

describeWith(["postgres", "temporal"], "GET /turnkeeper/v1/cost", () => {
  let served: Served;
  const keys = new Map<string, string>();

  beforeAll(async () => {
    served = await serve({ agents });
    for (const project of ["one", "two", "empty"]) {
      keys.set(project, (await createApiKey(served.database, project, "test")).secret);
    }
    const gateway = await served.startGateway();
    const run = async (project: string, request: object) => {
      const headers = { authorization: `Bearer ${keys.get(project)}` };
      const answer = await ask(`${gateway.url}/v1/responses`, "POST", request, headers);
      expect(answer.status).toBe(200);
    };
    const usage = { inputTokens: 1_000, cachedTokens: 0, outputTokens: 100 };
    served.simulator.script(text("a", { usage }), fault.rateLimit({ ms: 5 }), text("b", { usage }));
    await run("one", { input: "Hi", safety_identifier: "anna" });
    await run("one", { input: "Hi", model: "other", user: "ben" });
    served.simulator.script(text("c", { usage: { inputTokens: 7, outputTokens: 1 } }));
    await run("two", { input: "Hi", user: "anna" });
  });

  afterAll(() => served.close());

  const cost = (project: string, query = ""): Promise<Asked> =>
    served.ask("GET", `/turnkeeper/v1/cost${query}`, undefined, {
      authorization: `Bearer ${keys.get(project)}`,
    });

  const eachUsd = (1_000 * 1 + 100 * 5) / 1_000_000;

  test("adds up the calls of the key's project, and of no other [14]", async () => {
    const { body } = await cost("one", "?by=user&order=asc");
    expect(body).toMatchObject({
      object: "cost",
      by: "user",
      has_more: false,
      data: [
        { key: "anna", turns: 1, calls: 1, calls_wasted: 0, input_tokens: 1_000 },
        { key: "ben", turns: 1, calls: 2, calls_used: 1, calls_wasted: 1, calls_estimated: 1 },
      ],
      total: { turns: 2, calls: 3, calls_exact: 2, input_tokens: 2_000, output_tokens: 200 },
    });
    expect(body.total.cost_usd).toBeCloseTo(2 * eachUsd, 6);
    const other = await cost("two", "?by=user");
    expect(other.body).toMatchObject({ data: [{ key: "anna", calls: 1, input_tokens: 7 }] });
    expect((await cost("empty")).body).toMatchObject({
      data: [],
      total: { calls: 0, cost_usd: 0 },
    });
  });

  test.each(["turn", "conversation", "agent", "user", "model", "day"])(
    "by %s adds up to the same total",
    async (by) => {
      const { body } = await cost("one", `?by=${by}`);
      const calls = body.data.map((each: { calls: number }) => each.calls);
      expect(calls.reduce((sum: number, each: number) => sum + each, 0)).toBe(3);
      expect(body.data[0].key).not.toBeNull();
    },
  );

  test("is by agent unless told otherwise, and by limit keeps the dearest", async () => {
    expect((await cost("one")).body.data).toMatchObject([{ key: "default" }, { key: "other" }]);
    const { body } = await cost("one", "?by=turn&limit=1");
    expect(body).toMatchObject({ has_more: true, data: [{ calls: 1 }], total: { calls: 3 } });
  });

  test("covers the range that is asked for", async () => {
    const hourMs = 3_600_000;
    const before = new Date(Date.now() - hourMs).toISOString();
    expect((await cost("one", `?from=${before}`)).body.total.calls).toBe(3);
    expect((await cost("one", `?to=${before}`)).body.total.calls).toBe(0);
  });

  test("refuses what it does not know, and a request without a key", async () => {
    for (const query of ["?by=colour", "?limit=0", "?from=soon", "?group=agent"]) {
      expect(await cost("one", query)).toMatchObject({ status: 400 });
    }
    expect(await ask(`${served.gateway.url}/turnkeeper/v1/cost`, "GET")).toMatchObject({
      status: 401,
    });
  });
});
