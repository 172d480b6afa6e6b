import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { calls, fault, gate, text } from "../src/simulator/server.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import type { TurnLimits } from "../src/turn/limits.ts";
import { startCrashable } from "./setup/crashable.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { maxTurnTokens } from "./setup/limitedApp.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import type { EndedTurn } from "./setup/turnStream.ts";
import { untilSaid } from "./setup/untilSaid.ts";

let counted = 0;

const tools = [
  defineTool({
    name: "echo",
    description: "Says the same every time.",
    parameters: { type: "object", properties: { word: { type: "string" } } },
    handler: ({ word }) => String(word),
  }),
  defineTool({
    name: "count",
    description: "Says something else every time.",
    parameters: { type: "object", properties: {} },
    handler: () => String(++counted),
  }),
  defineTool({
    name: "hang",
    description: "Never answers.",
    parameters: { type: "object", properties: {} },
    handler: () => new Promise(() => {}),
  }),
];

const agent = (name: string, limits: Partial<TurnLimits>) =>
  defineAgent({ name, model: "gpt-6.1-terra", tools: ["echo", "count", "hang"], limits });

const sorry = "Nobody can answer now.";

const agents = [
  agent("three_steps", { maxSteps: 3 }),
  agent("one_step", { maxSteps: 1 }),
  agent("one_try", { maxSteps: 1, maxAttemptsPerStep: 1 }),
  defineAgent({ ...agent("always", { maxSteps: 1 }), staticAnswer: sorry }),
  defineAgent({ ...agent("punctual", { maxSteps: 1, maxTurnMs: 3_000 }), staticAnswer: sorry }),
  agent("two_calls", { maxCallsPerStep: 2 }),
  agent("few_tokens", { maxTurnTokens: 500 }),
  agent("cheap", { maxTurnCostUsd: 0.001 }),
  agent("impatient", { maxRepeatedCalls: 3 }),
  agent("short", { maxTurnMs: 8_000, lastWordMs: 6_000 }),
];

const report = "So far so good; the rest is left.";
const echo = (word = "hi") => calls([{ name: "echo", arguments: { word } }]);
const count = () => calls([{ name: "count", arguments: {} }]);

describeWith(["postgres", "temporal"], "a turn that reaches a limit", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({ agents, tools });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  async function run(model: string, ...script: ScriptStep[]): Promise<EndedTurn> {
    deployment.simulator.script(...script);
    return ended(await deployment.turnkeeper.turns.start({ input: "Go", model }));
  }

  /** The model has said where it stands, without tools, and the turn says why it ended. */
  function expectLastWord(turn: EndedTurn, reason: string): void {
    expect(turn).toMatchObject({ status: "incomplete", text: report });
    expect(turn.response["incomplete_details"]).toEqual({ reason });
    const last = deployment.simulator.requests.at(-1);
    expect(last?.body).toMatchObject({ tool_choice: "none" });
    expect(last?.items.at(-1)).toMatchObject({ type: "message", role: "developer" });
  }

  const outputsSent = () =>
    (deployment.simulator.requests.at(-1)?.items ?? []).flatMap((item) =>
      item.type === "function_call_output" ? [item.output] : [],
    );

  test("of steps: calls that it may not run any more are answered as not run", async () => {
    const turn = await run("three_steps", echo(), echo(), text(report));
    expectLastWord(turn, "step_limit");
    expect(turn.response.output).toMatchObject([
      { type: "mcp_call", status: "completed", output: "hi" },
      { type: "mcp_call", status: "failed" },
      { type: "message" },
    ]);
    expect(outputsSent()).toEqual(["hi", expect.stringContaining("not_run")]);
  });

  test("of one step gets one more call to say so", async () => {
    expectLastWord(await run("one_step", echo(), text(report)), "step_limit");
  });

  test("of calls in one answer runs none of them", async () => {
    const before = counted;
    const call = { name: "count", arguments: {} };
    expectLastWord(await run("two_calls", calls([call, call, call]), text(report)), "step_limit");
    expect(counted).toBe(before);
  });

  test("of tokens", async () => {
    const costly = { usage: { inputTokens: 400, outputTokens: 101 } };
    const asked = calls([{ name: "count", arguments: {} }], costly);
    expectLastWord(await run("few_tokens", asked, text(report)), "token_limit");
  });

  test("below its limit of tokens goes on", async () => {
    const cheap = { usage: { inputTokens: 200, outputTokens: 100 } };
    const asked = calls([{ name: "count", arguments: {} }], cheap);
    const turn = await run("few_tokens", asked, text("Done."));
    expect(turn).toMatchObject({ status: "completed", text: "Done." });
  });

  test("of tokens in answers that break off makes its next call the last one", async () => {
    const broken = fault.eof(600, text("word ".repeat(700)));
    expectLastWord(await run("few_tokens", broken, text(report)), "token_limit");
    const [first] = deployment.simulator.requests;
    expect(first?.body).not.toHaveProperty("tool_choice");
  });

  test("of tokens in a later step's answers that break off does so too", async () => {
    const broken = fault.eof(600, text("word ".repeat(700)));
    expectLastWord(await run("few_tokens", count(), broken, text(report)), "token_limit");
    const [, second] = deployment.simulator.requests;
    expect(second?.body).not.toHaveProperty("tool_choice");
  });

  test("below its limit goes on after an answer that breaks off", async () => {
    const turn = await run("few_tokens", fault.eof(2), count(), text("Done."));
    expect(turn).toMatchObject({ status: "completed", text: "Done." });
  });

  test("of cost", async () => {
    const costly = { usage: { inputTokens: 1_000, outputTokens: 100 } };
    const asked = calls([{ name: "count", arguments: {} }], costly);
    expectLastWord(await run("cheap", asked, text(report)), "cost_limit");
  });

  test("of calls that bring nothing new", async () => {
    const spelled = calls([{ name: "echo", arguments: '{ "word" :"hi"}' }]);
    expectLastWord(
      await run("impatient", echo(), spelled, echo("ho"), echo(), text(report)),
      "no_progress",
    );
  });

  test("of time: a tool that hangs is stopped while there is time for it", async () => {
    const turn = await run("short", calls([{ name: "hang", arguments: {} }]), text(report));
    expectLastWord(turn, "deadline");
    expect(outputsSent()).toEqual([expect.stringContaining("whether it had an effect")]);
  });

  test("calls with other results are progress", async () => {
    const turn = await run("impatient", count(), count(), count(), count(), text("Done."));
    expect(turn).toMatchObject({ status: "completed", text: "Done." });
  });

  test("a last call that asks for tools all the same ends the turn", async () => {
    const turn = await run("one_step", echo(), echo());
    expect(turn.status).toBe("incomplete");
    expect(turn.response["incomplete_details"]).toEqual({ reason: "step_limit" });
    expect(turn.response.output).toMatchObject([{ type: "mcp_call", status: "failed" }]);
  });

  test("a last call that breaks is made again as it was", async () => {
    const costly = { usage: { inputTokens: 1_000, outputTokens: 100 } };
    const asked = calls([{ name: "count", arguments: {} }], costly);
    expectLastWord(await run("cheap", asked, fault.reset(2), text(report)), "cost_limit");
    const [broken, last] = deployment.simulator.requests.slice(-2);
    expect(last?.body).toEqual(broken?.body);
  });

  test("a last call that fails for good does not fail the turn, which keeps what was done", async () => {
    const turn = await run("one_step", echo(), fault.contextLength());
    expect(turn).toMatchObject({ status: "incomplete", turn: { failure: null } });
    expect(turn.response["incomplete_details"]).toEqual({ reason: "step_limit" });
    expect(turn.response.output).toMatchObject([{ type: "mcp_call", status: "failed" }]);
    const ledger = await readModelCalls(deployment.database, "default", turn.turn.id);
    expect(ledger[1]).toMatchObject({ outcome: "wasted", failureClass: "context_overflow" });
  });

  test("a last call that breaks the last time it may leaves its text", async () => {
    const turn = await run("one_try", echo(), fault.reset(2));
    expect(turn).toMatchObject({ status: "incomplete", text: "one two" });
    expect(turn.response["incomplete_details"]).toEqual({ reason: "step_limit" });
  });

  test("a static answer in the place of the last call is no completed turn either", async () => {
    const turn = await run("always", echo(), fault.quota());
    expect(turn).toMatchObject({ status: "incomplete", text: sorry });
    expect(turn.response).toMatchObject({
      incomplete_details: { reason: "step_limit" },
      turnkeeper: { degraded: "static_answer" },
    });
    expect(turn.response.output).toMatchObject([{ type: "mcp_call" }, { type: "message" }]);
  });

  test("nor is one in the place of a last call that said nothing until the deadline", async () => {
    const turn = await run("punctual", echo(), fault.silence());
    expect(turn).toMatchObject({ status: "incomplete", text: sorry });
    expect(turn.response["incomplete_details"]).toEqual({ reason: "step_limit" });
  });

  test("the next turn of the conversation goes on from there, all pairs whole", async () => {
    const first = await run("three_steps", echo(), echo(), text(report));
    deployment.simulator.script(text("On we go."));
    const next = await deployment.turnkeeper.turns.start({
      input: "And?",
      conversation: first.turn.conversationId,
      model: "impatient",
    });
    expect(await ended(next)).toMatchObject({ status: "completed", text: "On we go." });
  });
});

describeWith(["postgres", "temporal"], "a turn whose worker dies in its last word", () => {
  const app = fileURLToPath(new URL("./setup/limitedApp.ts", import.meta.url));
  const hangGuardMs = 90_000;

  test(
    "has it said once more by another worker, for the same limit and without tools",
    async () => {
      const parts = await startCrashable();
      try {
        const { simulator, turnkeeper, database } = parts;
        const environment = { TURNKEEPER_APP: app };
        const first = await parts.startWorker({ environment });
        const asks = () =>
          calls([{ name: "echo", arguments: {} }], { usage: { inputTokens: 90, outputTokens: 9 } });
        // What is lost is above the limit of tokens, but was not on record before the step.
        const lost = "word ".repeat(maxTurnTokens);
        const pause = gate(2);
        const deltas = [lost, lost, lost];
        simulator.script(asks(), asks(), text("", { deltas, pauseAfter: pause }), text(report));
        const turn = await turnkeeper.turns.start({ input: "Go" });
        await pause.reached;
        await untilSaid(turn);
        await first.kill();
        await parts.startWorker({ environment });
        const result = await ended(turn);
        expect(result).toMatchObject({ status: "incomplete", text: report });
        expect(result.response["incomplete_details"]).toEqual({ reason: "no_progress" });
        const [, , lastWord, again, ...more] = simulator.requests;
        expect(again?.body).toEqual(lastWord?.body);
        expect(again?.body).toMatchObject({ tool_choice: "none" });
        expect(more).toEqual([]);
        const ledger = await readModelCalls(database, "default", turn.id);
        expect(ledger.map(({ outcome }) => outcome)).toEqual(["used", "used", "wasted", "used"]);
        expect(ledger[2]?.tokens?.outputTokens).toBeGreaterThan(maxTurnTokens);
      } finally {
        await parts.close();
      }
    },
    hangGuardMs,
  );
});
