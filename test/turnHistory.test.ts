import { fileURLToPath } from "node:url";
import type { Client } from "@temporalio/client";
import { DeterminismViolationError } from "@temporalio/workflow";
import { bundleWorkflowCode, Worker } from "@temporalio/worker";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turns.ts";
import { calls, fault, gate, text } from "../src/simulator/server.ts";
import { createConversation } from "../src/store/conversations.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { newId } from "../src/turn/ids.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import {
  keepHistory,
  mayUpdateHistories,
  readableHistory,
  storedHistories,
} from "./setup/histories.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import { workflowEnd } from "./setup/workflowEnd.ts";

/** What docs/performance.md promises of a history. */
const maxOneCall = { events: 12, bytes: 8 * 1024 };
const maxFurtherStep = { events: 6, bytes: 2 * 1024 };

const secret = "the-caller's-own-words";
const longTurnTimeoutMs = 60_000;

const tools = [
  defineTool({
    name: "echo",
    description: "Answers at once.",
    parameters: { type: "object", properties: {} },
    handler: () => `echo ${secret}`,
  }),
  defineTool({
    name: "fail",
    description: "Throws.",
    parameters: { type: "object", properties: {} },
    handler() {
      throw new Error(secret);
    },
  }),
];

describeWith(["postgres", "temporal"], "the history of a turn", () => {
  let deployment: Deployment;
  let temporal: Client;

  beforeAll(async () => {
    deployment = await deploy({
      tools,
      agents: [
        defineAgent({
          name: "default",
          model: "gpt-test",
          tools: ["echo", "fail"],
          limits: { maxSteps: 1_000, maxRepeatedCalls: 1_000 },
        }),
      ],
    });
    ({ temporal } = deployment);
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  /** Enough for a second run. */
  const rounds = 6;
  const callsPerRound = 32;
  const manyCalls = () =>
    calls(Array.from({ length: callsPerRound }, () => ({ name: "echo", arguments: {} })));

  const start = (input: string, more: object = {}): Promise<TurnHandle> =>
    deployment.turnkeeper.turns.start({ input, ...more });

  /** Runs a turn to the end of its workflow, and tells how long its history is. */
  async function measure(turn: TurnHandle): Promise<{ events: number; bytes: number }> {
    await ended(turn);
    const workflow = temporal.workflow.getHandle(turn.id);
    await workflow.result();
    const { historyLength, historySize = 0 } = await workflow.describe();
    return { events: historyLength, bytes: historySize };
  }

  function expectWithin(history: { events: number; bytes: number }, bar: typeof history): void {
    expect(history.events).toBeLessThanOrEqual(bar.events);
    expect(history.bytes).toBeLessThanOrEqual(bar.bytes);
  }

  const call = (name: string) => calls([{ name, arguments: { said: secret } }], { text: secret });

  test("of one call is short, however long the conversation and the input are", async () => {
    const { simulator } = deployment;
    simulator.script(text("Short."));
    const first = await start("Hi");
    const short = await measure(first);
    expectWithin(short, maxOneCall);
    let previous = first;
    for (let turn = 2; turn <= 10; turn++) {
      simulator.script(text(`Answer ${turn}.`));
      previous = await start("x".repeat(200_000), { previous_response_id: previous.id });
      await ended(previous);
    }
    expectWithin(await measure(previous), maxOneCall);
  });

  test("grows by little with a further step, and not by what the step says", async () => {
    const { simulator } = deployment;
    simulator.script(text("Done."));
    const one = await measure(await start("Hi"));
    const rounds = 4;
    const chatty = () => calls([{ name: "echo", arguments: {} }], { text: "y".repeat(10_000) });
    simulator.script(...Array.from({ length: rounds }, chatty), text("Done."));
    const many = await measure(await start("Hi"));
    const furtherSteps = 2 * rounds;
    expectWithin(
      {
        events: (many.events - one.events) / furtherSteps,
        bytes: (many.bytes - one.bytes) / furtherSteps,
      },
      maxFurtherStep,
    );
  });

  test("is no longer after two failed attempts", async () => {
    deployment.simulator.script(fault.reset(2), fault.rateLimit({ ms: 1 }), text("Done."));
    expectWithin(await measure(await start("Hi")), maxOneCall);
  });

  test("has no word of the caller, the model or the tools in it, and no stack", async () => {
    const { simulator } = deployment;
    const refusal = { body: { error: { message: secret, type: "server_error" } } };
    simulator.script(call("echo"), fault.status(500, refusal), call("fail"), text(secret));
    const turn = await start(secret, { instructions: secret, metadata: { secret } });
    await measure(turn);
    const history = await readableHistory(temporal, turn.id);
    expect(history).not.toContain(secret);
    expect(history).not.toMatch(/\.(ts|js|mjs):\d+/);
    expect(history).toContain("server_error");
  });

  test("tells an operator what the turn is and does", async () => {
    const { simulator } = deployment;
    simulator.script(call("echo"), text("Done."));
    const turn = await start("Hi", { user: "somebody" });
    await measure(turn);
    const description = await temporal.workflow.getHandle(turn.id).describe();
    expect(await description.staticSummary()).toBe("default on gpt-test");
    expect(description.searchAttributes).toMatchObject({
      TurnkeeperProject: ["default"],
      TurnkeeperConversation: [turn.conversationId],
      TurnkeeperAgent: ["default"],
      TurnkeeperModel: ["gpt-test"],
      TurnkeeperStatus: ["completed"],
    });
    expect(description.searchAttributes["TurnkeeperUser"]).not.toEqual(["somebody"]);
    const { events } = await temporal.workflow.getHandle(turn.id).fetchHistory();
    const summaries = (events ?? [])
      .filter((event) => event.activityTaskScheduledEventAttributes)
      .map((event) => String(Buffer.from(event.userMetadata?.summary?.data ?? [])));
    expect(summaries).toEqual(['"gpt-test"', '"echo"', '"gpt-test"']);
  });

  test(
    "continues as new when it gets long, and the turn goes on where it was",
    async () => {
      const { simulator } = deployment;
      simulator.script(...Array.from({ length: rounds }, manyCalls), text("Done."));
      const turn = await start("Work");
      const result = await ended(turn);
      expect(result).toMatchObject({ status: "completed", text: "Done." });
      expect(result.response.output).toHaveLength(rounds * callsPerRound + 1);
      const workflow = temporal.workflow.getHandle(turn.id);
      expect(await workflow.result()).toEqual({ status: "completed" });
      const { raw, searchAttributes, runId } = await workflow.describe();
      expect(raw.workflowExecutionInfo?.firstRunId).not.toBe(runId);
      expect(searchAttributes["TurnkeeperStatus"]).toEqual(["completed"]);
    },
    longTurnTimeoutMs,
  );

  test("of every shape that is stored can be replayed by today's workflow code", async () => {
    await keepHistories();
    const replayed = await replayStored("../src/workflows/index.ts");
    expect(replayed.map(({ workflowId }) => workflowId)).toEqual(shapes);
    expect(replayed.filter(({ error }) => error !== undefined)).toEqual([]);
  });

  test("of every shape cannot be replayed by workflow code with one activity more", async () => {
    const replayed = await replayStored("./setup/changedWorkflow.ts");
    expect(replayed.map(({ error }) => error)).toEqual(
      shapes.map(() => expect.any(DeterminismViolationError) as unknown),
    );
  });

  /** Replays all stored histories by the workflows of a module; by name. */
  async function replayStored(module: string): Promise<{ workflowId: string; error?: unknown }[]> {
    const workflowBundle = await bundleWorkflowCode({
      workflowsPath: fileURLToPath(new URL(module, import.meta.url)),
      logger: { log() {}, trace() {}, debug() {}, info() {}, warn() {}, error() {} },
    });
    const histories = await storedHistories();
    const replayed = await Array.fromAsync(
      Worker.runReplayHistories({ workflowBundle }, histories),
    );
    return replayed
      .map(({ workflowId, error }) => ({ workflowId, error }))
      .sort((left, right) => left.workflowId.localeCompare(right.workflowId));
  }

  const shapes = [
    "cancelled",
    "continued",
    "directStart",
    "failed",
    "oneCall",
    "queuedDirectStart",
    "tools",
  ];

  /** Makes a history of each shape; does nothing unless they are to be updated. */
  async function keepHistories(): Promise<void> {
    if (!mayUpdateHistories) return;
    const { simulator, database, taskQueue } = deployment;
    const keep = async (name: string, workflowId: string) => {
      await workflowEnd(temporal, workflowId);
      await keepHistory(name, temporal, workflowId);
    };
    const direct = async (request: object) => {
      const options = { taskQueue, workflowId: newId("turn"), args: [{ request }] };
      return (await temporal.workflow.start("conversationTurn", options)).workflowId;
    };
    simulator.script(text("Done."));
    await keep("oneCall", (await start("Hi")).id);
    simulator.script(
      calls([
        { name: "echo", arguments: {} },
        { name: "fail", arguments: {} },
      ]),
    );
    simulator.script(text("Done."));
    await keep("tools", (await start("Hi")).id);
    simulator.script(fault.quota());
    await keep("failed", (await start("Hi")).id);
    const pause = gate(1);
    simulator.script(text("Never said.", { pauseAfter: pause }));
    const cancelled = await start("Hi");
    await pause.reached;
    await cancelled.cancel();
    await keep("cancelled", cancelled.id);
    simulator.script(text("Done."));
    await keep("directStart", await direct({ input: "Hi" }));
    const conversation = (await createConversation(database, "default", {}, [])).id;
    const holding = gate(1);
    simulator.script(text("First.", { pauseAfter: holding }), text("Second."));
    await start("Hi", { conversation });
    await holding.reached;
    const queued = await direct({ input: "Hi", conversation });
    await untilQueued(queued);
    holding.open();
    await keep("queuedDirectStart", queued);
    simulator.script(...Array.from({ length: rounds }, manyCalls), text("Done."));
    await keep("continued", (await start("Work")).id);
  }

  async function untilQueued(turnId: string): Promise<void> {
    for (;;) {
      const turn = await deployment.turnkeeper.turns.read(turnId).catch(() => null);
      if (turn?.status === "queued") return;
    }
  }
});
