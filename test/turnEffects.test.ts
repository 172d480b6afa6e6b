import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, text } from "../src/simulator/server.ts";
import { readStepRecords } from "../src/store/steps.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import type { ToolContext } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { startProxy } from "./setup/proxy.ts";
import type { Proxy } from "./setup/proxy.ts";
import { describeWith, sharedTemporal } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const anyObject = { type: "object" };
const takeoverTimeoutMs = 60_000;
/** The SDK by itself stops a handler 5 s after Temporal has given its step to another worker. */
const aLittleMs = 2_000;

/** The runs of the tools below, in order. */
let runs: { key: string; signal: AbortSignal; leave: () => void }[] = [];
let entered = Promise.withResolvers<void>();

async function handle(_: unknown, { idempotencyKey: key, signal }: ToolContext): Promise<string> {
  const left = Promise.withResolvers<void>();
  runs.push({ key, signal, leave: left.resolve });
  entered.resolve();
  await left.promise;
  return "done";
}

const tools = [
  defineTool({ name: "pay", description: "Pays.", parameters: anyObject, handler: handle }),
  defineTool({
    name: "look",
    description: "Looks.",
    parameters: anyObject,
    repeatable: true,
    handler: handle,
  }),
  defineTool({
    name: "key",
    description: "Tells its key.",
    parameters: anyObject,
    handler: (_, { idempotencyKey }) => idempotencyKey,
  }),
];
const agents = [
  defineAgent({ name: "default", model: "gpt-test", tools: tools.map((tool) => tool.name) }),
];

describeWith(["postgres", "temporal"], "[8] the effect of a tool call", () => {
  let proxy: Proxy;
  let first: Deployment;

  beforeAll(async () => {
    proxy = await startProxy(sharedTemporal().address);
    first = await deploy({ tools, agents, temporalAddress: proxy.address });
  });

  afterAll(async () => {
    await first.close();
    await proxy.close();
  });

  afterEach(() => {
    runs = [];
    entered = Promise.withResolvers();
    first.endScript();
  });

  const start = (): Promise<TurnHandle> => first.turnkeeper.turns.start({ input: "Go" });

  async function outcomesOf(turn: TurnHandle): Promise<unknown[]> {
    const steps = await readStepRecords(first.database, "default", turn.id);
    return steps.filter((step) => step.kind === "tool").map((step) => step.outcome);
  }

  test("is named by the turn, the tool, its arguments in any order, and the number among equals", async () => {
    const key = (args: string) => ({ name: "key", arguments: args });
    first.simulator.script(
      calls([key('{"a": 1, "b": [2]}'), key('{"b":[2],"a":1.0}'), key('{"a": 2}')]),
      calls([key('{"a":1,"b":[2]}'), key(""), key("{}")]),
      text("Done."),
    );
    const turn = await start();
    const { response } = await ended(turn);
    const keys = response.output.map((item) => (item as { output?: string }).output).slice(0, 6);
    const parts = keys.map((each) => each?.split("/") ?? []);
    expect(parts.map(([origin]) => origin)).toEqual(parts.map(() => turn.id));
    expect(parts.map(([, , number]) => number)).toEqual(["1", "2", "1", "3", "1", "2"]);
    const [same, again, other, later, none, empty] = parts.map(([, hash]) => hash);
    expect([again, later, empty]).toEqual([same, same, none]);
    expect(new Set([same, other, none]).size).toBe(3);
    expect(await outcomesOf(turn)).toEqual(keys.map(() => "ok"));
  });

  /** Cuts the worker off while a tool runs there. */
  async function lose(tool: string): Promise<TurnHandle> {
    first.simulator.script(calls([{ name: tool, arguments: {} }]), text("I see."));
    const turn = await start();
    await entered.promise;
    proxy.freeze();
    return turn;
  }

  test(
    "is given up by a worker that lost Temporal, and stays unknown to the model and the operator",
    async () => {
      const turn = await lose("pay");
      await expect.poll(() => runs[0]?.signal.aborted, { timeout: takeoverTimeoutMs }).toBe(true);
      proxy.thaw();
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "I see." });
      expect(runs).toHaveLength(1);
      expect(JSON.stringify(first.simulator.requests[1]?.body.input)).toContain("unknown");
      expect(await outcomesOf(turn)).toEqual(["unknown"]);
    },
    takeoverTimeoutMs,
  );

  test(
    "of a repeatable tool is begun again elsewhere, under the same key, after the first was told to stop",
    async () => {
      const turn = await lose("look");
      const second = await deploy({
        tools,
        agents,
        databaseUrl: first.databaseUrl,
        taskQueue: first.taskQueue,
        openaiBaseUrl: first.simulator.baseUrl,
      });
      const [lost] = runs;
      const attempt = async () => {
        const { raw } = await second.temporal.workflow.getHandle(turn.id).describe();
        return raw.pendingActivities?.[0]?.attempt;
      };
      await expect.poll(attempt, { timeout: takeoverTimeoutMs }).toBeGreaterThan(1);
      await expect.poll(() => lost?.signal.aborted, { timeout: aLittleMs }).toBe(true);
      await expect.poll(() => runs.length, { timeout: takeoverTimeoutMs }).toBe(2);
      proxy.thaw();
      runs[1]?.leave();
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "I see." });
      expect(runs.map((run) => run.key)).toEqual([lost?.key, lost?.key]);
      expect(await outcomesOf(turn)).toEqual(["ok"]);
      await second.close();
    },
    takeoverTimeoutMs,
  );
});
