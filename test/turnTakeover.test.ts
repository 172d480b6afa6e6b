import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Client } from "@temporalio/client";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, expect, inject, test, vi } from "vitest";
import { z } from "zod";
import { heldForMs } from "../src/activities/streamModel.ts";
import type { TurnHandle } from "../src/turnHandle.ts";
import { openModelEndpoint } from "../src/responses/call.ts";
import { calls, fault, gate, text } from "../src/simulator/server.ts";
import { registerAgents } from "../src/store/agents.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { readStepRecords } from "../src/store/steps.ts";
import { connectNatively } from "../src/temporal.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { createWorker } from "../src/worker.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith, sharedTemporal } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import { untilSaid } from "./setup/untilSaid.ts";

const answer = "A whole answer.";

/** A handler's call that waits until the test lets it go on. */
function newVisit() {
  return { count: 0, entered: Promise.withResolvers<void>(), leave: Promise.withResolvers<void>() };
}
let visit = newVisit();

const visitTool = (name: string, repeatable: boolean) =>
  defineTool({
    name,
    description: "Waits.",
    parameters: { type: "object", properties: {} },
    repeatable,
    async handler() {
      visit.count += 1;
      visit.entered.resolve();
      await visit.leave.promise;
      return `visit ${visit.count}`;
    },
  });

/** Its arguments are never right, which takes as long as a visit to find out. */
const refuse = defineTool({
  name: "refuse",
  description: "Cannot be called.",
  parameters: z.object({}).refine(async () => {
    visit.count += 1;
    visit.entered.resolve();
    await visit.leave.promise;
    return false;
  }, "never right"),
  repeatable: true,
  handler: () => "called",
});

/** What a handler has to do before it answers. */
let beforeAnswer: () => Promise<void> = async () => {};

const prepare = defineTool({
  name: "prepare",
  description: "Does what the test says.",
  parameters: { type: "object", properties: {} },
  async handler() {
    await beforeAnswer();
    return "ready";
  },
});

const later = defineTool({
  name: "later",
  description: "Only new workers have it.",
  parameters: { type: "object", properties: {} },
  handler: () => "from the new worker",
});

describeWith(["postgres", "temporal"], "a step that is taken over", () => {
  let deployment: Deployment;
  let temporal: Client;

  beforeAll(async () => {
    const tools = ["pay", "look", "prepare", "refuse"];
    deployment = await deploy({
      tools: [visitTool("pay", false), visitTool("look", true), prepare, refuse],
      agents: [
        defineAgent({ name: "default", model: "gpt-test", tools }),
        defineAgent({ name: "once", model: "gpt-test", tools, limits: { maxAttemptsPerStep: 1 } }),
      ],
    });
    ({ temporal } = deployment);
  });

  afterAll(() => deployment.close());

  afterEach(() => {
    visit = newVisit();
    deployment.endScript();
  });

  const start = (model = "default"): Promise<TurnHandle> =>
    deployment.turnkeeper.turns.start({ input: "Hi", model });

  /** The step's row as it is when a later attempt has claimed the step. */
  async function replaceAttempt(turn: TurnHandle, step: number): Promise<void> {
    await deployment.database.query(
      "UPDATE steps SET attempt = 2, token = '' WHERE turn_id = $1 AND number = $2",
      [turn.id, step],
    );
  }

  async function outcomes(turn: TurnHandle): Promise<string[]> {
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    return ledger.map((call) => call.outcome);
  }

  test("is not ended by the failure of the attempt that was replaced", async () => {
    const { simulator } = deployment;
    const release = Promise.withResolvers<void>();
    const refuse = async () => {
      await release.promise;
      return fault.quota();
    };
    simulator.script(refuse, text(answer));
    const turn = await start();
    await simulator.waitFor("request");
    await replaceAttempt(turn, 1);
    release.resolve();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
    expect(await outcomes(turn)).toEqual(["wasted", "used"]);
  });

  test("is not bought again by an attempt that was held up behind its claim", async () => {
    const { simulator, database, turnkeeper } = deployment;
    simulator.script(text("Hello."), calls([{ name: "prepare", arguments: {} }]), text(answer));
    const first = await ended(await start());
    // The items of the conversation cannot be read, so the call that follows the tool has to wait.
    const held = Promise.withResolvers<void>();
    const release = Promise.withResolvers<void>();
    let locked: Promise<void> = Promise.resolve();
    beforeAnswer = () => {
      locked = database.transaction(async (tx) => {
        await tx.query("SET LOCAL idle_in_transaction_session_timeout = 0");
        await tx.query("LOCK TABLE items IN ACCESS EXCLUSIVE MODE");
        held.resolve();
        await release.promise;
      });
      return held.promise;
    };
    const turn = await turnkeeper.turns.start({
      input: "Go on",
      model: "default",
      conversation: first.turn.conversationId,
    });
    const isWaiting = () =>
      database.query("SELECT FROM pg_locks WHERE relation = 'items'::regclass AND NOT granted");
    await expect.poll(isWaiting).toHaveLength(1);
    await replaceAttempt(turn, 3);
    // Sooner than this after its claim no step is taken over, and no attempt looks.
    await delay(heldForMs);
    release.resolve();
    await locked;
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
    expect(simulator.bill).toHaveLength(3);
    // Whoever takes a step over cannot know that the call of the one before never left; it stays so.
    expect(await outcomes(turn)).toEqual(["used", "wasted", "used"]);
  });

  /** Has the next request wait, as for a connection; it leaves when `release` is called. */
  function holdRequest(): { reached: Promise<void>; release: () => void } {
    const { endpoint } = deployment;
    const reached = Promise.withResolvers<void>();
    const held = Promise.withResolvers<void>();
    const stream = endpoint.stream.bind(endpoint);
    vi.spyOn(endpoint, "stream").mockImplementationOnce(async function* (call, options) {
      reached.resolve();
      await held.promise;
      yield* stream(call, options);
    });
    return { reached: reached.promise, release: held.resolve };
  }

  test.each([
    ["is not bought again where it was replaced meanwhile", true, ["wasted", "used"]],
    ["is made all the same where nobody has replaced it", false, ["used"]],
  ])("whose request was held up %s", async (_, isReplaced, expected) => {
    const { simulator } = deployment;
    const request = holdRequest();
    simulator.script(text(answer));
    const turn = await start();
    await request.reached;
    if (isReplaced) await replaceAttempt(turn, 1);
    await delay(heldForMs);
    request.release();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
    expect(simulator.bill).toHaveLength(1);
    expect(await outcomes(turn)).toEqual(expected);
  });

  test("whose time is up meanwhile is unknown to the model, though its tool may be repeated", async () => {
    const { simulator, database } = deployment;
    simulator.script(calls([{ name: "look", arguments: {} }]), text(answer));
    const turn = await start();
    await visit.entered.promise;
    await database.query(
      "UPDATE turns SET deadline_at = now() + interval '20 seconds' WHERE id = $1",
      [turn.id],
    );
    await replaceAttempt(turn, 2);
    visit.leave.resolve();
    expect(await ended(turn)).toMatchObject({ status: "incomplete", text: answer });
    expect(visit.count).toBe(1);
    const unknown = expect.stringContaining("outcome_unknown");
    expect(simulator.requests.at(-1)?.items).toContainEqual(
      expect.objectContaining({ type: "function_call_output", output: unknown }),
    );
  });

  test("is not written to by the attempt that was replaced", async () => {
    const pause = gate(2);
    deployment.simulator.script(text("one two three four", { pauseAfter: pause }), text(answer));
    const turn = await start();
    await pause.reached;
    await replaceAttempt(turn, 1);
    pause.open();
    const result = await ended(turn);
    expect(result).toMatchObject({ status: "completed", text: answer });
    expect(JSON.stringify(result.events)).not.toContain("four");
    expect(await outcomes(turn)).toEqual(["wasted", "used"]);
  });

  test.each([
    ["cancel_requested_at = now()", "cancelled"],
    ["deadline_at = now()", "incomplete"],
  ])("when its turn is over, by %s, keeps what was shown of it", async (over, status) => {
    const { simulator, database } = deployment;
    const pause = gate(2);
    simulator.script(text("one two three four", { pauseAfter: pause }));
    const turn = await start();
    await untilSaid(turn, "one two");
    // In one, so that the attempt that runs hears of neither before the other.
    await database.query(
      `WITH replaced AS (UPDATE steps SET attempt = 2, token = '' WHERE turn_id = $1)
       UPDATE turns SET ${over} WHERE id = $1`,
      [turn.id],
    );
    pause.open();
    const result = await ended(turn);
    expect(result).toMatchObject({ status, text: "one two" });
    expect(result.response.output).toMatchObject([{ type: "message", status: "incomplete" }]);
    expect(simulator.bill).toHaveLength(1);
    expect(await outcomes(turn)).toEqual(["wasted"]);
  });

  test.each([
    ["nothing yet, keeps what the one before has shown", "headers", "one two"],
    ["something, keeps only that", 2, "five six"],
  ] as const)("when its turn is cancelled after the new one has shown %s", async (_, at, kept) => {
    const { simulator } = deployment;
    const [first, second] = [gate(2), gate(at)];
    simulator.script(
      text("one two three four", { pauseAfter: first }),
      text("five six seven", { pauseAfter: second }),
    );
    const turn = await start();
    await untilSaid(turn, "one two");
    await replaceAttempt(turn, 1);
    first.open();
    await second.reached;
    if (at !== "headers") await untilSaid(turn, "one twofive six");
    await turn.cancel();
    const result = await ended(turn);
    expect(result).toMatchObject({ status: "cancelled", text: kept });
    expect(await outcomes(turn)).toEqual(["wasted", "wasted"]);
    second.open();
  });

  test.each([
    [
      "is not run again, and the model is told that its outcome is unknown",
      "pay",
      "default",
      "outcome_unknown",
      "unknown",
    ],
    ["that may be repeated is run again", "look", "default", "visit 2", "ok"],
    ["is run as often as the limit allows", "look", "once", "outcome_unknown", "unknown"],
    [
      "with wrong arguments is known not to have run",
      "refuse",
      "default",
      "never right",
      "not_run",
    ],
  ])("of a tool %s", async (_, name, model, told, outcome) => {
    const { simulator } = deployment;
    simulator.script(calls([{ name, arguments: {} }]), text(answer));
    const turn = await start(model);
    await visit.entered.promise;
    await replaceAttempt(turn, 2);
    visit.leave.resolve();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
    expect(visit.count).toBe(outcome === "unknown" ? 1 : 2);
    expect(JSON.stringify(simulator.requests[1]?.body.input)).toContain(told);
    const steps = await readStepRecords(deployment.database, "default", turn.id);
    expect(steps.map((step) => step.outcome)).toEqual([null, outcome, null]);
  });

  /** Starts the workflow's history anew, as an operator does in Temporal's UI. */
  async function reset(turn: TurnHandle): Promise<string> {
    const { runId } = await temporal.workflow.getHandle(turn.id).describe();
    // Started, scheduled, begun, completed; the SDK's types ask for a Long where a number does.
    const firstTaskEnd = 4 as never;
    const response = await temporal.workflowService.resetWorkflowExecution({
      namespace: "default",
      workflowExecution: { workflowId: turn.id, runId },
      workflowTaskFinishEventId: firstTaskEnd,
      requestId: randomUUID(),
      reason: "test",
    });
    return response.runId;
  }

  test("by a reset in mid-stream is called again by the new run alone, and the stream is exact", async () => {
    const pause = gate(2);
    deployment.simulator.script(text("one two three four", { pauseAfter: pause }), text(answer));
    const turn = await start();
    await pause.reached;
    const runId = await reset(turn);
    const result = await ended(turn);
    expect(result).toMatchObject({ status: "completed", text: answer, turn: { runId } });
    expect(await outcomes(turn)).toEqual(["wasted", "used"]);
    expect(await temporal.workflow.getHandle(turn.id).result()).toEqual({ status: "completed" });
  });

  test("by a reset does not run again what was finished before it: no call of a model or a tool", async () => {
    const { simulator } = deployment;
    const pause = gate(2);
    visit.leave.resolve();
    simulator.script(calls([{ name: "pay", arguments: {} }]));
    simulator.script(text("one two three four", { pauseAfter: pause }), text(answer));
    const turn = await start();
    await pause.reached;
    await reset(turn);
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
    expect(visit.count).toBe(1);
    expect(await outcomes(turn)).toEqual(["used", "wasted", "used"]);
  });

  test("by a reset of a turn that has ended is not run again", async () => {
    deployment.simulator.script(text(answer));
    const turn = await start();
    const before = await ended(turn);
    await temporal.workflow.getHandle(turn.id).result();
    await reset(turn);
    expect(await temporal.workflow.getHandle(turn.id).result()).toEqual({ status: "completed" });
    expect((await ended(turn)).turn).toEqual(before.turn);
    expect(deployment.simulator.bill).toHaveLength(1);
  });

  test("by the worker that has its tool runs there, while old workers still take turns", async () => {
    const { simulator, database, taskQueue } = deployment;
    const agent = defineAgent({ name: "new", model: "gpt-test", tools: ["later"] });
    await registerAgents(database, [agent]);
    simulator.script(calls([{ name: "later", arguments: {} }]), text(answer));
    const turn = await start("new");
    await expect.poll(() => attemptOf(turn)).toBeGreaterThan(0);
    const log = pino({ level: "silent" });
    const { address } = sharedTemporal();
    const { connection, client } = await connectNatively({ address }, log);
    const baseUrl = simulator.baseUrl;
    const timeouts = { connectTimeoutMs: 5_000, headersTimeoutMs: 5_000 };
    const endpoint = openModelEndpoint({ baseUrl, apiKey: "sk-simulated", ...timeouts });
    const worker = await createWorker({
      connection,
      client,
      taskQueue,
      database,
      endpoint,
      log,
      agents: [agent],
      tools: [later],
      workflowBundle: inject("workflowBundle"),
      maxConcurrentSteps: 10,
      shutdownGraceMs: 1_000,
    });
    const running = worker.run();
    const result = await ended(turn);
    expect(result).toMatchObject({ status: "completed", text: answer });
    expect(result.response.output[0]).toMatchObject({ output: "from the new worker" });
    expect(await outcomes(turn)).toEqual(["used", "used"]);
    worker.shutdown();
    await running;
    await endpoint.close();
    await connection.close();
  });

  async function attemptOf(turn: TurnHandle): Promise<number> {
    const [step] = await deployment.database.query<{ attempt: number }>(
      "SELECT attempt FROM steps WHERE turn_id = $1",
      [turn.id],
    );
    return step?.attempt ?? 0;
  }
});
