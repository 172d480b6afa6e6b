import { fileURLToPath } from "node:url";
import type { Client } from "@temporalio/client";
import { DeterminismViolationError } from "@temporalio/workflow";
import { bundleWorkflowCode, Worker } from "@temporalio/worker";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, fault, text } from "../src/simulator/server.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import {
  keepHistory,
  mayAddHistories,
  readableHistory,
  storedHistories,
} from "./setup/histories.ts";
import { agents, historyShapes, longTurn, secret, tools } from "./setup/historyShapes.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import { workflowEnd } from "./setup/workflowEnd.ts";

/** What docs/performance.md promises of a history. */
const maxOneCall = { events: 12, bytes: 8 * 1024 };
const maxFurtherStep = { events: 6, bytes: 2 * 1024 };

const longTurnTimeoutMs = 60_000;

describeWith(["postgres", "temporal"], "the history of a turn", () => {
  let deployment: Deployment;
  let temporal: Client;

  beforeAll(async () => {
    deployment = await deploy({ tools, agents });
    ({ temporal } = deployment);
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

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
      // Not the user's own name [15].
      TurnkeeperUser: [expect.stringMatching(/^[0-9a-f]{16}$/)],
    });
    const { events } = await temporal.workflow.getHandle(turn.id).fetchHistory();
    const summaries = (events ?? [])
      .filter((event) => event.activityTaskScheduledEventAttributes)
      .map((event) => String(Buffer.from(event.userMetadata?.summary?.data ?? [])));
    expect(summaries).toEqual(['"gpt-test"', '"echo"', '"gpt-test"']);
  });

  test("has the dead worker of a model or tool call missed after 5 s", async () => {
    deployment.simulator.script(call("echo"), text("Done."));
    const turn = await start("Hi");
    await measure(turn);
    const { events } = await temporal.workflow.getHandle(turn.id).fetchHistory();
    const timeouts = (events ?? []).flatMap(({ activityTaskScheduledEventAttributes: scheduled }) =>
      scheduled ? [Number(scheduled.heartbeatTimeout?.seconds ?? 0)] : [],
    );
    expect(timeouts).toEqual([5, 5, 5]);
  });

  test(
    "continues as new when it gets long, and the turn goes on where it was",
    async () => {
      const { simulator } = deployment;
      simulator.script(...longTurn.script());
      const turn = await start("Work");
      const result = await ended(turn);
      expect(result).toMatchObject({ status: "completed", text: "Done." });
      expect(result.response.output).toHaveLength(longTurn.outputItems);
      const workflow = temporal.workflow.getHandle(turn.id);
      expect(await workflow.result()).toEqual({ status: "completed" });
      const { raw, searchAttributes, runId } = await workflow.describe();
      expect(raw.workflowExecutionInfo?.firstRunId).not.toBe(runId);
      expect(searchAttributes["TurnkeeperStatus"]).toEqual(["completed"]);
    },
    longTurnTimeoutMs,
  );

  test(
    "of every shape that is stored can be replayed by today's workflow code",
    async () => {
      await keepHistories();
      const replayed = await replayStored("../src/workflows/index.ts");
      expect(replayed.map(({ workflowId }) => workflowId)).toEqual(shapes());
      expect(replayed.filter(({ error }) => error !== undefined)).toEqual([]);
    },
    longTurnTimeoutMs,
  );

  test("of every shape cannot be replayed by workflow code with one activity more", async () => {
    const replayed = await replayStored("./setup/changedWorkflow.ts");
    expect(replayed.map(({ error }) => error)).toEqual(
      shapes().map(() => expect.any(DeterminismViolationError) as unknown),
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

  const shapes = () => Object.keys(historyShapes(deployment));

  /** Makes the histories that are missing; does nothing unless some may be added. */
  async function keepHistories(): Promise<void> {
    if (!mayAddHistories) return;
    const stored = new Set((await storedHistories()).map(({ workflowId }) => workflowId));
    for (const [name, make] of Object.entries(historyShapes(deployment))) {
      if (stored.has(name)) continue;
      const made = await make();
      await workflowEnd(temporal, made.workflowId);
      await keepHistory(name, temporal, made);
    }
  }
});
