// Turns of every shape that a workflow's history can have.
import { expect } from "vitest";
import { calls, fault, gate, text } from "../../src/simulator/server.ts";
import type { ScriptStep } from "../../src/simulator/server.ts";
import { createConversation } from "../../src/store/conversations.ts";
import { defineTool } from "../../src/tools/defineTool.ts";
import { defineAgent } from "../../src/turn/agent.ts";
import { newId } from "../../src/turn/ids.ts";
import type { TurnHandle } from "../../src/turnHandle.ts";
import type { Deployment } from "./deployment.ts";
import type { KeptRun } from "./histories.ts";
import { ended } from "./turnStream.ts";
import { workflowEnd } from "./workflowEnd.ts";

/** What no history may have in it. */
export const secret = "the-caller's-own-words";

export const tools = [
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

export const agents = [
  defineAgent({
    name: "default",
    model: "gpt-test",
    tools: ["echo", "fail"],
    limits: { maxSteps: 1_000, maxRepeatedCalls: 1_000 },
  }),
  defineAgent({
    name: "one_step",
    model: "gpt-test",
    tools: ["echo"],
    limits: { maxSteps: 1 },
  }),
];

const call = (name: string) => ({ name, arguments: {} });
const clientTool = { type: "function", name: "ask_user", parameters: null, strict: null };

/** Rounds that are enough for a second run, and then an answer. */
const rounds = 6;
const callsPerRound = 32;
export const longTurn = {
  outputItems: rounds * callsPerRound + 1,
  script: () => [
    ...Array.from({ length: rounds }, () =>
      calls(Array.from({ length: callsPerRound }, () => call("echo"))),
    ),
    text("Done."),
  ],
};

async function startDirectly(parts: Deployment, request: object): Promise<KeptRun> {
  const { taskQueue, temporal } = parts;
  const options = { taskQueue, workflowId: newId("turn"), args: [{ request }] };
  return { workflowId: (await temporal.workflow.start("conversationTurn", options)).workflowId };
}

/** The activity that a workflow waits for. */
async function pendingActivity({ temporal }: Deployment, { workflowId }: KeptRun) {
  const { raw } = await temporal.workflow.getHandle(workflowId).describe();
  return raw.pendingActivities?.[0];
}

/** A turn that is started directly and waits behind another one, until that one is let go on. */
async function startQueued(parts: Deployment) {
  const { simulator, database, turnkeeper } = parts;
  const conversation = (await createConversation(database, "default", {}, [])).id;
  const holding = gate(1);
  simulator.script(text("First.", { pauseAfter: holding }));
  const holder = await turnkeeper.turns.start({ input: "Hi", conversation });
  await holding.reached;
  const queued = await startDirectly(parts, { input: "Hi", conversation });
  const waitsFor = async () => (await pendingActivity(parts, queued))?.activityType?.name;
  await expect.poll(waitsFor).toBe("awaitGrant");
  return { queued, holder, open: holding.open };
}

/** A turn that pauses in the middle of its model call. */
async function startPaused({ simulator, turnkeeper }: Deployment): Promise<TurnHandle> {
  const pause = gate(1);
  simulator.script(text("Never said.", { pauseAfter: pause }));
  const turn = await turnkeeper.turns.start({ input: "Hi" });
  await pause.reached;
  return turn;
}

/** An activity fails for good, as when an operator fails it in Temporal. */
async function failActivity(parts: Deployment, run: KeptRun): Promise<void> {
  await parts.temporal.workflowService.respondActivityTaskFailedById({
    namespace: "default",
    workflowId: run.workflowId,
    activityId: (await pendingActivity(parts, run))?.activityId ?? null,
    failure: { message: "by hand", applicationFailureInfo: { nonRetryable: true } },
  });
}

/** By the name of a shape: runs a turn of it, and tells which run's history is to be kept. */
export function historyShapes(parts: Deployment): Record<string, () => Promise<KeptRun>> {
  const { simulator, turnkeeper, temporal } = parts;

  async function answered(script: readonly ScriptStep[], request: object = {}): Promise<KeptRun> {
    simulator.script(...script);
    return { workflowId: (await turnkeeper.turns.start({ input: "Hi", ...request })).id };
  }

  return {
    async activityFailed() {
      const run = { workflowId: (await startPaused(parts)).id };
      await failActivity(parts, run);
      return run;
    },
    async cancelled() {
      const turn = await startPaused(parts);
      await turn.cancel();
      return { workflowId: turn.id };
    },
    async cancelledInQueue() {
      const { queued, holder, open } = await startQueued(parts);
      await temporal.workflow.getHandle(queued.workflowId).cancel();
      await workflowEnd(temporal, queued.workflowId);
      open();
      await ended(holder);
      return queued;
    },
    clientCalls: () => answered([calls([call("echo"), call("ask_user")])], { tools: [clientTool] }),
    // Its last run.
    continued: () => answered(longTurn.script()),
    // The first run of another, in small steps, so that it ends just behind the bound.
    async continuing() {
      const rounds = 45;
      const script = Array.from({ length: rounds }, () => calls([call("echo")]));
      const { workflowId } = await answered([...script, text("Done.")]);
      await workflowEnd(temporal, workflowId);
      const { raw } = await temporal.workflow.getHandle(workflowId).describe();
      return { workflowId, runId: raw.workflowExecutionInfo?.firstRunId ?? "" };
    },
    async directStart() {
      simulator.script(text("Done."));
      return startDirectly(parts, { input: "Hi" });
    },
    failed: () => answered([fault.quota()]),
    oneCall: () => answered([text("Done.")]),
    async queuedDirectStart() {
      const { queued, open } = await startQueued(parts);
      simulator.script(text("Second."));
      open();
      return queued;
    },
    refusedDirectStart: () => startDirectly(parts, { model: "gpt-test" }),
    stepLimit: () => answered([calls([call("echo")]), text("That is all.")], { model: "one_step" }),
    tools: () => answered([calls([call("echo"), call("fail")]), text("Done.")]),
  };
}
