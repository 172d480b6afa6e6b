import fc from "fast-check";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { calls, fault, gate, join, reasoning, text, when } from "../src/simulator/server.ts";
import type { BilledCall, ScriptedUsage } from "../src/simulator/bill.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { anyFreePort } from "../src/dev/ports.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import type { ModelCallRecord } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { priceOf } from "../src/turn/prices.ts";
import { startCrashable } from "./setup/crashable.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { untilSaid } from "./setup/untilSaid.ts";

const model = "gpt-6.1-terra";
const longTestMs = 120_000;

const tools = [
  defineTool({
    name: "echo",
    description: "Answers at once.",
    parameters: { type: "object", properties: {} },
    handler: () => "echo",
  }),
];

const agents = [
  defineAgent({
    name: "default",
    model,
    instructions: "You are brief.",
    tools: ["echo"],
    limits: { idleTimeoutMs: 3_000 },
  }),
];

/** Failures after which the step is tried again, by what the provider's bill says of them. */
const faults: Record<string, () => ScriptStep> = {
  "rate limit": () => fault.rateLimit({ ms: 20 }),
  overload: () => fault.status(503),
  "server error": () => fault.status(500),
  "no answer": () => fault.destroy(),
  reset: () => fault.reset(3),
  "reset in thought": () => fault.reset(2, join(reasoning("Let me think of it."), text("So."))),
  "early end": () => fault.eof(5),
  silence: () => fault.silence(2),
  "error event": () => fault.errorEvent(4),
  "failed response": () => fault.failed(6),
};

const failing = fc.array(fc.constantFrom(...Object.keys(faults)), { maxLength: 2 });
const tokens = fc.integer({ min: 1, max: 200_000 });
/** Some input was read from the cache, some written to it, and some output was reasoned. */
const usages = fc
  .record({ cached: tokens, written: tokens, fresh: tokens, reasoned: tokens, said: tokens })
  .map(({ cached, written, fresh, reasoned, said }) => ({
    inputTokens: cached + written + fresh,
    cachedTokens: cached,
    cacheWriteTokens: written,
    outputTokens: reasoned + said,
    reasoningTokens: reasoned,
  }));

/** The failures before the call of a tool, if there is one, and those before the answer. */
const turns = fc.array(
  fc.record({ beforeTool: fc.option(failing), beforeAnswer: failing, usage: usages }),
  { minLength: 6, maxLength: 8 },
);

const tokensOf = (call: BilledCall): Required<ScriptedUsage> => ({
  inputTokens: call.inputTokens,
  cachedTokens: call.cachedTokens,
  cacheWriteTokens: call.cacheWriteTokens,
  outputTokens: call.outputTokens,
  reasoningTokens: call.reasoningTokens,
});

/** An estimate is right to a quarter here; the provider that is simulated counts in its own way. */
function expectClose(estimated: number | undefined, billed: number): void {
  expect(Math.abs((estimated ?? 0) - billed)).toBeLessThanOrEqual(billed / 4);
}

/** What a row of the ledger may say of a call, by the provider's bill. */
function expectRow(row: ModelCallRecord, billed: BilledCall): void {
  expect(row.endedAt).not.toBeNull();
  expect(row.outcome).toBe(billed.status === "completed" ? "used" : "wasted");
  if (row.requestId !== null) expect(row.requestId).toBe(billed.requestId);
  const { tokens, costUsd, certainty } = row;
  switch (certainty) {
    case "exact":
      expect(tokens).toEqual(tokensOf(billed));
      expect(row.responseId).toBe(billed.responseId);
      break;
    case "estimated":
      expect(billed.status).not.toBe("completed");
      expectClose(tokens?.inputTokens, billed.inputTokens);
      // Not more than was billed: the bill has what was lost on the way, too.
      expect(tokens?.outputTokens).toBeLessThanOrEqual(billed.outputTokens);
      if (billed.outputTokens > 0) expect(tokens?.outputTokens).toBeGreaterThan(0);
      expect(tokens?.reasoningTokens).toBeLessThanOrEqual(billed.reasoningTokens);
      if (billed.reasoningTokens > 0) expect(tokens?.reasoningTokens).toBeGreaterThan(0);
      break;
    case "unknown":
      expect({ tokens, failure: row.failureClass }).toEqual({ tokens: null, failure: "transport" });
  }
  expect(costUsd).toBe(tokens && priceOf(model, tokens));
  expect(row.failureMessage !== null).toBe(row.outcome === "wasted");
}

describeWith(["postgres", "temporal"], "[7] the ledger", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({ agents, tools });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  /** Runs a turn whose calls are told from those of the others by the text of its input. */
  async function run(mark: string, steps: readonly ScriptStep[]) {
    const { simulator, turnkeeper, database } = deployment;
    const isMine = (request: { body: object }) => JSON.stringify(request.body).includes(mark);
    simulator.script(...steps.map((step) => when(isMine, step)));
    const turn = await turnkeeper.turns.start({ input: `${mark} ${"word ".repeat(50)}` });
    await turn.result();
    const ids = new Set(simulator.requests.filter(isMine).map((request) => request.requestId));
    return {
      rows: await readModelCalls(database, "default", turn.id),
      bill: simulator.bill.filter((billed) => ids.has(billed.requestId)),
    };
  }

  test(
    "has one row for each call on the provider's bill, whatever fails, and exact ones to the token",
    async () => {
      let count = 0;
      await fc.assert(
        fc.asyncProperty(turns, async (scripts) => {
          const ran = scripts.map(({ beforeTool, beforeAnswer, usage }) => {
            const failures = (names: readonly string[]) => names.map((name) => faults[name]?.());
            const toolCall =
              beforeTool === null
                ? []
                : [...failures(beforeTool), calls([{ name: "echo", arguments: {} }])];
            const answer = join(reasoning("Let me think."), text("The answer.", { usage }));
            const steps = [...toolCall, ...failures(beforeAnswer), answer];
            return run(`mark-${++count}-`, steps as ScriptStep[]);
          });
          for (const { rows, bill } of await Promise.all(ran)) {
            expect(rows).toHaveLength(bill.length);
            for (const [at, row] of rows.entries()) expectRow(row, bill[at] as BilledCall);
          }
        }),
        { numRuns: 3, endOnFailure: true },
      );
    },
    longTestMs,
  );

  test("estimates a whole answer whose provider tells no usage, and does not show it as usage", async () => {
    const { rows, bill } = await run("unsaid", [text("The answer.", { omit: ["usage"] })]);
    expect(rows).toMatchObject([{ outcome: "used", certainty: "estimated" }]);
    expectClose(rows[0]?.tokens?.inputTokens, bill[0]?.inputTokens ?? 0);
    expect(rows[0]?.tokens?.outputTokens).toBeGreaterThan(0);
  });
});

describeWith(
  ["postgres", "temporal"],
  "[7] the ledger of a worker that reaches no provider",
  () => {
    test("knows that a request which never was whole has cost nothing", async () => {
      const limits = { maxAttemptsPerStep: 1 };
      const away = await deploy({
        openaiBaseUrl: `http://127.0.0.1:${await anyFreePort()}/v1`,
        agents: [defineAgent({ name: "default", model, limits })],
      });
      try {
        const turn = await away.turnkeeper.turns.start({ input: "Hi" });
        expect(await turn.result()).toMatchObject({ status: "failed" });
        expect(await readModelCalls(away.database, "default", turn.id)).toMatchObject([
          {
            failureClass: "transport",
            certainty: "estimated",
            tokens: { inputTokens: 0 },
            costUsd: 0,
          },
        ]);
      } finally {
        await away.close();
      }
    });
  },
);

describeWith(["postgres", "temporal"], "[7] the ledger of a worker that is killed", () => {
  test(
    "estimates the call that it had begun",
    async () => {
      const parts = await startCrashable();
      try {
        const pause = gate(4);
        const first = await parts.startWorker();
        const deltas = ["One", " two", " three", " four", " five"];
        parts.simulator.script(text("", { deltas, pauseAfter: pause }), text("The answer."));
        const turn = await parts.turnkeeper.turns.start({ input: "word ".repeat(50), model });
        await pause.reached;
        await untilSaid(turn);
        await first.kill();
        await parts.startWorker();
        expect(await turn.result()).toMatchObject({ status: "completed", text: "The answer." });
        const rows = await readModelCalls(parts.database, "default", turn.id);
        expect(rows).toMatchObject([
          { outcome: "wasted", certainty: "estimated" },
          { outcome: "used", certainty: "exact" },
        ]);
        const [wasted, used] = rows.map((row) => row.tokens);
        expectClose(wasted?.inputTokens, used?.inputTokens ?? 0);
        expect(wasted?.outputTokens).toBeGreaterThan(0);
      } finally {
        await parts.close();
      }
    },
    longTestMs,
  );
});
