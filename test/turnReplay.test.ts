import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, fault, gate, text } from "../src/simulator/server.ts";
import { listAgents, registerAgents } from "../src/store/agents.ts";
import { deleteConversation, readHistory } from "../src/store/conversations.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { readStepRecords } from "../src/store/steps.ts";
import { listTurns } from "../src/store/turns.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import type { ToolContext } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

/** The keys of the calls that the tools have served. */
let paid: string[] = [];
let looked: string[] = [];

const parameters = { type: "object" };
const tools = [
  defineTool({
    name: "pay",
    description: "Pays.",
    parameters,
    handler({ cents }, { idempotencyKey }: ToolContext) {
      paid.push(idempotencyKey);
      const times = paid.filter((key) => key === idempotencyKey).length;
      return `paid ${Number(cents)}, ${times}`;
    },
  }),
  defineTool({
    name: "look",
    description: "Looks.",
    parameters,
    repeatable: true,
    handler(_, { idempotencyKey }: ToolContext) {
      looked.push(idempotencyKey);
      return `sight ${looked.length}`;
    },
  }),
];

const pay = (args: object = {}) => ({ name: "pay", arguments: args });
const look = (args: object = {}) => ({ name: "look", arguments: args });

describeWith(["postgres", "temporal"], "a replay", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({
      tools,
      agents: [defineAgent({ name: "default", model: "gpt-test", tools: ["pay", "look"] })],
    });
  });

  afterAll(() => deployment.close());

  afterEach(() => {
    paid = [];
    looked = [];
    deployment.endScript();
  });

  const turns = () => deployment.turnkeeper.turns;
  const start = (more: object = {}): Promise<TurnHandle> =>
    turns().start({ input: "Pay", ...more });

  /** A turn that has paid and looked, and failed at its second model call. */
  async function failed(more: object = {}): Promise<TurnHandle> {
    deployment.simulator.script(
      calls([pay({ cents: 5 }), look()], { text: "Paying." }),
      fault.quota(),
    );
    const turn = await start(more);
    expect(await ended(turn)).toMatchObject({ status: "failed", text: "Paying." });
    return turn;
  }

  async function completed(): Promise<TurnHandle> {
    deployment.simulator.script(calls([pay({ cents: 5 })]), text("Paid."));
    const turn = await start();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: "Paid." });
    return turn;
  }

  /** What the last model call was shown of the tools. */
  function outputs(): unknown[] {
    const input = deployment.simulator.requests.at(-1)?.body.input as unknown as {
      type: string;
      output: string;
    }[];
    return input.filter((item) => item.type === "function_call_output").map((item) => item.output);
  }

  const ledgerOf = (turn: TurnHandle) => readModelCalls(deployment.database, "default", turn.id);

  async function toolSteps(turn: TurnHandle): Promise<[string, unknown][]> {
    const steps = await readStepRecords(deployment.database, "default", turn.id);
    return steps.filter((step) => step.kind === "tool").map((step) => [step.state, step.outcome]);
  }

  const historyOf = (turn: TurnHandle) =>
    readHistory(deployment.database, "default", turn.conversationId);

  test("of a failed turn goes on in its conversation: nothing finished is run or paid again", async () => {
    const { simulator } = deployment;
    const original = await failed();
    const asked = simulator.requests[1]?.body.input;
    simulator.script(text("Done."));
    const replay = await turns().replay(original.id);
    const result = await ended(replay);
    expect(result).toMatchObject({ status: "completed", text: "Paying.Done." });
    expect(result.turn.replay).toEqual({
      of: original.id,
      originId: original.id,
      effects: "new",
      isDryRun: false,
    });
    expect(replay.conversationId).toBe(original.conversationId);
    expect([paid.length, looked.length]).toEqual([1, 1]);
    expect(simulator.requests.at(-1)?.body.input).toEqual(asked);
    expect(simulator.bill).toHaveLength(3);
    expect(await ledgerOf(replay)).toMatchObject([{ step: 4, outcome: "used" }]);
    expect(result.response.output).toMatchObject([
      { type: "message" },
      { type: "mcp_call", name: "pay", output: "paid 5, 1" },
      { type: "mcp_call", name: "look", output: "sight 1" },
      { type: "message" },
    ]);
    const before = JSON.stringify((await turns().read(original.id)).output);
    for (const { id } of result.response.output as { id: string }[])
      expect(before).not.toContain(id);
    const items = await historyOf(replay);
    expect(items.map((item) => item.type)).toEqual([
      "message",
      "message",
      "function_call",
      "function_call",
      "function_call_output",
      "function_call_output",
      "message",
    ]);
  });

  test("goes on with new calls where it goes on in place, and a replay of it shares the effects", async () => {
    const { simulator } = deployment;
    const original = await failed();
    simulator.script(calls([pay({ cents: 6 }), pay({ cents: 5 })]), fault.quota());
    const second = await turns().replay(original.id);
    expect(await ended(second)).toMatchObject({ status: "failed" });
    expect(paid).toHaveLength(3);
    expect(paid.map((key) => key.split("/")[0])).toEqual(paid.map(() => original.id));
    expect(paid).toContain(paid[0]?.replace(/1$/, "2"));
    simulator.script(text("Done."));
    const third = await turns().replay(second.id);
    expect(await ended(third)).toMatchObject({ status: "completed", text: "Paying.Done." });
    expect((await turns().read(third.id)).replay).toMatchObject({
      of: second.id,
      originId: original.id,
    });
    expect(paid).toHaveLength(3);
    simulator.script(calls([pay({ cents: 6 })]), text("Again."));
    await ended(await turns().replay(third.id, { fromStart: true }));
    expect(outputs()).toEqual(["paid 6, 1"]);
    expect(paid).toHaveLength(3);
  });

  test("of a failed turn that others have followed runs in a fork at its base", async () => {
    const { simulator } = deployment;
    simulator.script(text("Hello."));
    const first = await start({ input: "Hi" });
    await ended(first);
    const original = await failed({ conversation: first.conversationId });
    simulator.script(text("Bye."));
    await ended(await start({ input: "Bye", conversation: first.conversationId }));
    const whole = await historyOf(first);
    simulator.script(text("Done."));
    const replay = await turns().replay(original.id);
    expect(await ended(replay)).toMatchObject({ status: "completed", text: "Paying.Done." });
    expect(replay.conversationId).not.toBe(original.conversationId);
    expect((await turns().read(replay.id)).request.conversation).toBe(replay.conversationId);
    expect(await historyOf(first)).toEqual(whole);
    const forked = await historyOf(replay);
    expect(forked.slice(0, 2)).toEqual(whole.slice(0, 2));
    expect(JSON.stringify(forked)).not.toContain("Bye");
  });

  test("of a completed turn makes its last call again, in a fork", async () => {
    const { simulator } = deployment;
    const original = await completed();
    simulator.script(text("Paid, as I said."));
    const replay = await turns().replay(original.id);
    expect(await ended(replay)).toMatchObject({ status: "completed", text: "Paid, as I said." });
    expect(replay.conversationId).not.toBe(original.conversationId);
    expect(outputs()).toEqual(["paid 5, 1"]);
    expect(await ledgerOf(replay)).toHaveLength(1);
    expect(paid).toHaveLength(1);
  });

  test("from the start answers calls with the outcomes on record, and makes no new ones", async () => {
    const { simulator } = deployment;
    const original = await completed();
    simulator.script(
      calls([pay({ cents: 7 }), pay({ cents: 5 }), pay({ cents: 5 }), look()]),
      text("Hm."),
    );
    const replay = await turns().replay(original.id, { model: "gpt-other" });
    expect(await ended(replay)).toMatchObject({
      status: "completed",
      turn: { model: "gpt-other" },
    });
    expect(simulator.requests.at(-1)?.body.model).toBe("gpt-other");
    const notMade = expect.stringContaining('"type":"not_run"') as string;
    expect(outputs()).toEqual([notMade, "paid 5, 1", notMade, "sight 1"]);
    expect(await toolSteps(replay)).toEqual([
      ["finished", "not_run"],
      ["finished", "ok"],
      ["finished", "not_run"],
      ["finished", "ok"],
    ]);
    expect([paid.length, looked.length]).toEqual([1, 1]);
    expect(await ledgerOf(replay)).toHaveLength(2);
  });

  test("runs every call again, under the keys of the original, only where effects are allowed", async () => {
    const { simulator } = deployment;
    const original = await completed();
    simulator.script(calls([pay({ cents: 5 }), pay({ cents: 9 })]), text("Paid twice."));
    await ended(await turns().replay(original.id, { fromStart: true, allowEffects: true }));
    expect(paid).toHaveLength(3);
    expect(outputs()).toEqual(["paid 5, 2", "paid 9, 1"]);
  });

  /** As if the worker had died while it ran, or before it began, its first tool. */
  async function lose(turn: TurnHandle, began: boolean): Promise<void> {
    await deployment.database.query(
      `UPDATE steps SET state = 'abandoned', outcome = NULL, items = NULL, output = NULL, verdict = NULL,
         started_at = CASE WHEN $2 THEN started_at END WHERE turn_id = $1 AND number = 2`,
      [turn.id, began],
    );
  }

  test("leaves an unknown outcome unknown, until effects are allowed", async () => {
    const { simulator } = deployment;
    const original = await failed();
    await lose(original, true);
    simulator.script(fault.quota());
    const second = await turns().replay(original.id);
    const stream = await ended(second);
    expect(stream.status).toBe("failed");
    expect(paid).toHaveLength(1);
    expect(outputs()).toEqual([expect.stringContaining("outcome_unknown"), "sight 1"]);
    expect(await toolSteps(second)).toEqual([
      ["finished", "unknown"],
      ["finished", "ok"],
    ]);
    simulator.script(text("Done."));
    const third = await turns().replay(original.id, { allowEffects: true });
    expect(await ended(third)).toMatchObject({ status: "completed" });
    expect(paid).toEqual([paid[0], paid[0]]);
    expect(outputs()).toEqual(["paid 5, 2", "sight 1"]);
  });

  test("makes a call that never began where it goes on in place, and not in a fork", async () => {
    const { simulator } = deployment;
    const original = await failed();
    await lose(original, false);
    simulator.script(text("Not done."), text("Done."));
    await ended(await turns().replay(original.id, { fork: true }));
    expect(outputs()).toEqual([expect.stringContaining("not_run"), "sight 1"]);
    expect(paid).toHaveLength(1);
    const replay = await turns().replay(original.id);
    expect(await ended(replay)).toMatchObject({ status: "completed", text: "Paying.Done." });
    expect(outputs()).toEqual(["paid 5, 2", "sight 1"]);
    expect(paid[1]).toBe(paid[0]);
  });

  test("with other instructions and tools has an agent of its own, which no other turn gets", async () => {
    const { simulator } = deployment;
    const original = await completed();
    const agents = await listAgents(deployment.database);
    simulator.script(calls([pay({ cents: 5 })]), text("Looked."));
    const replay = await turns().replay(original.id, { instructions: "Look.", tools: ["look"] });
    await ended(replay);
    const [first] = simulator.requests.slice(-2);
    expect(first?.body).toMatchObject({ instructions: "Look.", tools: [{ name: "look" }] });
    expect(outputs()).toEqual([expect.stringContaining("unknown_tool")]);
    expect(await listAgents(deployment.database)).toEqual(agents);
    expect((await turns().read(replay.id)).agentVersion).not.toBe(agents[0]?.version);
  });

  test("[9] answers the same calls of the client as its turn, in its conversation and in a fork", async () => {
    const { simulator } = deployment;
    const ask = { type: "function", name: "ask", parameters, strict: false };
    simulator.script(calls([{ name: "ask", arguments: {}, callId: "call_1" }]));
    const first = await start({ tools: [ask] });
    await ended(first);
    const answers = [{ type: "function_call_output", call_id: "call_1", output: "yes" }];
    simulator.script(fault.quota());
    const original = await start({
      input: answers,
      tools: [ask],
      previous_response_id: first.id,
    });
    await ended(original);
    simulator.script(text("Forked."), text("Done."));
    const fork = await turns().replay(original.id, { fork: true });
    expect(await ended(fork)).toMatchObject({ status: "completed", text: "Forked." });
    expect(outputs()).toEqual(["yes"]);
    const replay = await turns().replay(original.id);
    expect(await ended(replay)).toMatchObject({ status: "completed", text: "Done." });
    expect(outputs()).toEqual(["yes"]);
    expect(replay.conversationId).toBe(first.conversationId);
  });

  test("keeps the version of its turn's agent, and gets the limits of the current one", async () => {
    const limited = (maxSteps: number) =>
      defineAgent({ name: "limited", model: "gpt-test", limits: { maxSteps } });
    await registerAgents(deployment.database, [limited(7)]);
    deployment.simulator.script(fault.quota(), text("Done."));
    const original = await start({ agent: "limited" });
    await ended(original);
    await registerAgents(deployment.database, [limited(9)]);
    const { turn } = await ended(await turns().replay(original.id));
    expect(turn).toMatchObject({ limits: { maxSteps: 9 }, agentVersion: limited(7).version });
  });

  test("as a dry run compares, and leaves nothing that anybody is shown", async () => {
    const { simulator, database } = deployment;
    const original = await completed();
    const shown = await listTurns(database, "default", { limit: 100 });
    const history = await historyOf(original);
    simulator.script(calls([pay({ cents: 5 }), pay({ cents: 6 })]), text("Paid it."));
    const dryRun = await turns().replay(original.id, { fromStart: true, dryRun: true });
    await dryRun.result();
    const comparison = await turns().compare(dryRun.id);
    expect(comparison).toMatchObject({
      original: {
        turnId: original.id,
        status: "completed",
        text: "Paid.",
        steps: 3,
        modelCalls: 2,
      },
      replay: { status: "completed", text: "Paid it.", steps: 4, modelCalls: 2 },
      difference: { at: 4, original: "", replay: " it" },
    });
    expect(comparison.replay.inputTokens).toBeGreaterThan(0);
    expect(paid).toHaveLength(1);
    expect(await listTurns(database, "default", { limit: 100 })).toEqual(shown);
    expect(await historyOf(original)).toEqual(history);
    await expect(turns().read(dryRun.id)).rejects.toMatchObject({ code: "response_not_found" });
    simulator.script(text("Paid."));
    const same = await turns().replay(original.id, { dryRun: true });
    await same.result();
    expect((await turns().compare(same.id)).difference).toBeNull();
  });

  test("is the same one when it is asked for again under its key, and refused with other options", async () => {
    const { simulator } = deployment;
    const original = await failed();
    simulator.script(text("Done."));
    const key = { idempotencyKey: "replay-1" };
    const [one, two] = await Promise.all([
      turns().replay(original.id, {}, key),
      turns().replay(original.id, {}, key),
    ]);
    expect(one.id).toBe(two.id);
    expect(one.isNew).not.toBe(two.isNew);
    await ended(one);
    const other = turns().replay(original.id, { fork: true }, key);
    await expect(other).rejects.toMatchObject({ code: "idempotency_key_reused" });
  });

  test("is refused while its turn runs, and where there is nothing to replay", async () => {
    const { simulator, database } = deployment;
    const pause = gate(1);
    simulator.script(text("one two", { pauseAfter: pause }));
    const running = await start();
    await pause.reached;
    const refused = (id: string, options: object = {}) =>
      turns()
        .replay(id, options)
        .then(
          () => "taken",
          (error: { code?: string }) => error.code,
        );
    const queued = await turns().start(
      { input: "Hi", conversation: running.conversationId },
      { whenBusy: "queue" },
    );
    await queued.cancel();
    expect(await refused(running.id)).toBe("conversation_busy");
    expect(await refused(queued.id)).toBe("not_replayable");
    pause.open();
    await ended(running);
    expect(await refused("resp_nobody")).toBe("response_not_found");
    expect(await refused(running.id, { tools: ["absent"] })).toBe("invalid_value");
    expect(await refused(running.id, { contextStrategy: "summary" })).toBe("invalid_value");
    expect(await refused(running.id, { dryRun: true, allowEffects: true })).toBe("invalid_value");
    expect(await refused(running.id, { model: "gpt-other", fromStart: false })).toBe(
      "invalid_value",
    );
    await deleteConversation(database, "default", running.conversationId);
    expect(await refused(running.id)).toBe("conversation_not_found");
  });
});
