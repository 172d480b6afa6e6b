import type { Client } from "@temporalio/client";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, fault, gate, text } from "../src/simulator/server.ts";
import { readHistory } from "../src/store/conversations.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { outputText } from "../src/turn/items.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { admit } from "./setup/storeTurns.ts";
import { ended } from "./setup/turnStream.ts";
import { untilSaid } from "./setup/untilSaid.ts";

/** What the tool saw of its last call. */
let seen = { called: Promise.withResolvers<string>(), aborted: Promise.withResolvers<void>() };

const waitTool = defineTool({
  name: "wait",
  description: "Waits until it is stopped, and does not even stop then.",
  parameters: { type: "object", properties: {} },
  handler(_, { signal, turnId }) {
    seen.called.resolve(turnId);
    signal.addEventListener("abort", () => seen.aborted.resolve());
    return new Promise(() => {});
  },
});

describeWith(["postgres", "temporal"], "a turn that is cancelled", () => {
  let deployment: Deployment;
  let temporal: Client;

  beforeAll(async () => {
    deployment = await deploy({
      tools: [waitTool],
      agents: [defineAgent({ name: "default", model: "gpt-test", tools: ["wait"] })],
      janitor: { roundMs: 200, patienceMs: 1_500 },
    });
    ({ temporal } = deployment);
  });

  afterAll(() => deployment.close());

  afterEach(() => {
    deployment.endScript();
    seen = { called: Promise.withResolvers(), aborted: Promise.withResolvers() };
  });

  const start = (input: string, more: object = {}): Promise<TurnHandle> =>
    deployment.turnkeeper.turns.start({ input, ...more });

  /** A turn whose model has said `One two` and pauses. */
  async function startPaused(): Promise<TurnHandle> {
    const pause = gate(2);
    deployment.simulator.script(text("", { deltas: ["One", " two", " three"], pauseAfter: pause }));
    const turn = await start("Count");
    await pause.reached;
    await untilSaid(turn, "One two");
    return turn;
  }

  async function startTool(): Promise<TurnHandle> {
    deployment.simulator.script(calls([{ name: "wait", arguments: {} }], { text: "Waiting." }));
    const turn = await start("Wait");
    await seen.called.promise;
    return turn;
  }

  /** The conversation goes on at once, from what was said before the cancel. */
  async function expectUsable(turn: TurnHandle, said: string): Promise<void> {
    deployment.simulator.script(text("Going on."));
    const next = await start("Go on", { conversation: turn.conversationId });
    expect(await ended(next)).toMatchObject({ status: "completed", text: "Going on." });
    const history = await readHistory(deployment.database, "default", turn.conversationId);
    expect(outputText(history)).toBe(`${said}Going on.`);
  }

  test("before anybody claimed it ends at once, and no model is called", async () => {
    const { database, turnkeeper, simulator } = deployment;
    const turn = await admit(database);
    await turnkeeper.turns.cancel(turn.id);
    const handle = await turnkeeper.turns.get(turn.id);
    expect(await ended(handle)).toMatchObject({ status: "cancelled", text: "" });
    expect(simulator.bill).toHaveLength(0);
    await expectUsable(handle, "");
  });

  test("in mid-stream closes the model's socket and keeps the partial answer, marked incomplete", async () => {
    const turn = await startPaused();
    await turn.cancel();
    await deployment.simulator.waitFor("aborted");
    const result = await ended(turn);
    expect(result).toMatchObject({ status: "cancelled", text: "One two" });
    expect(result.response).toMatchObject({
      status: "cancelled",
      incomplete_details: null,
      error: null,
      output: [{ type: "message", status: "incomplete" }],
    });
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(ledger).toMatchObject([{ outcome: "wasted", failureClass: null }]);
    await expectUsable(turn, "One two");
    const sent = deployment.simulator.requests.at(-1)?.body.input as unknown[];
    expect(sent[1]).toMatchObject({ role: "assistant", status: "incomplete" });
  });

  test("in the middle of a call keeps the message that it had finished before", async () => {
    const pause = gate(4);
    const asked = [{ name: "wait", arguments: { reason: "to see what comes of it" } }];
    deployment.simulator.script(calls(asked, { text: "Let me see.", pauseAfter: pause }));
    const turn = await start("Wait");
    await pause.reached;
    for await (const event of turn.events()) {
      if (event.type === "response.mcp_call_arguments.delta") break;
    }
    await turn.cancel();
    expect(await ended(turn)).toMatchObject({
      status: "cancelled",
      text: "Let me see.",
      response: { output: [{ type: "message", status: "completed" }] },
    });
    await expectUsable(turn, "Let me see.");
  });

  test("before the model has said anything ends without an answer", async () => {
    deployment.simulator.script(fault.silence());
    const turn = await start("Hi");
    await deployment.simulator.waitFor("request");
    await turn.cancel();
    await deployment.simulator.waitFor("aborted");
    expect(await ended(turn)).toMatchObject({ status: "cancelled", response: { output: [] } });
    await expectUsable(turn, "");
  });

  test("by Temporal's cancel does the same", async () => {
    const turn = await startPaused();
    const workflow = temporal.workflow.getHandle(turn.id);
    await workflow.cancel();
    await deployment.simulator.waitFor("aborted");
    expect(await ended(turn)).toMatchObject({ status: "cancelled", text: "One two" });
    expect(await workflow.result()).toEqual({ status: "cancelled" });
    await expectUsable(turn, "One two");
  });

  test("by Temporal's cancel does so while its own call holds the worker's last slot", async () => {
    const busy = await deploy({ maxConcurrentSteps: 1 });
    try {
      const pause = gate(2);
      busy.simulator.script(text("", { deltas: ["One", " two", " three"], pauseAfter: pause }));
      const turn = await busy.turnkeeper.turns.start({ input: "Count" });
      await pause.reached;
      await untilSaid(turn, "One two");
      await busy.temporal.workflow.getHandle(turn.id).cancel();
      await busy.simulator.waitFor("aborted");
      expect(await ended(turn)).toMatchObject({ status: "cancelled", text: "One two" });
    } finally {
      await busy.close();
    }
  });

  test("during a tool aborts the handler's signal, and the pair is whole for the next model call", async () => {
    const turn = await startTool();
    await turn.cancel();
    await seen.aborted.promise;
    expect(await ended(turn)).toMatchObject({ status: "cancelled", text: "Waiting." });
    await expectUsable(turn, "Waiting.");
    const sent = deployment.simulator.requests.at(-1)?.body.input as unknown as { type: string }[];
    expect(sent.map((item) => item.type)).toEqual([
      "message",
      "message",
      "function_call",
      "function_call_output",
      "message",
    ]);
  });

  test("between steps makes no further model call, even if nobody was told of the cancel", async () => {
    const turn = await startTool();
    await deployment.database.query("UPDATE turns SET cancel_requested_at = now() WHERE id = $1", [
      turn.id,
    ]);
    await seen.aborted.promise;
    expect(await ended(turn)).toMatchObject({ status: "cancelled", text: "Waiting." });
    expect(deployment.simulator.bill).toHaveLength(1);
    expect(await readModelCalls(deployment.database, "default", turn.id)).toHaveLength(1);
    await expectUsable(turn, "Waiting.");
  });

  test("while it waits for a retry ends without the retry", async () => {
    const { simulator } = deployment;
    simulator.script(fault.rateLimit({ seconds: 60 }));
    // The other calls of a model that is limited are held back with it.
    const turn = await start("Hi", { model: "gpt-limited" });
    await simulator.waitFor("finished");
    await turn.cancel();
    expect(await ended(turn)).toMatchObject({ status: "cancelled", text: "" });
    expect(simulator.bill).toHaveLength(1);
    await expectUsable(turn, "");
  });

  test("after its end stays completed", async () => {
    deployment.simulator.script(text("Done."));
    const turn = await start("Hi");
    await ended(turn);
    await turn.cancel();
    await temporal.workflow.getHandle(turn.id).result();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: "Done." });
  });

  test("twice is cancelled once", async () => {
    const turn = await startPaused();
    await Promise.all([turn.cancel(), turn.cancel()]);
    expect(await ended(turn)).toMatchObject({ status: "cancelled", text: "One two" });
    await turn.cancel();
    expect(await ended(turn)).toMatchObject({ status: "cancelled" });
    await expectUsable(turn, "One two");
  });

  test("by terminating its workflow is ended as failed by the janitor, and the next turn is granted", async () => {
    const turn = await startPaused();
    const queued = await deployment.turnkeeper.turns.start(
      { input: "Next", conversation: turn.conversationId },
      { whenBusy: "queue" },
    );
    deployment.simulator.script(text("Next answer."));
    await temporal.workflow.getHandle(turn.id).terminate("by hand");
    await deployment.simulator.waitFor("aborted");
    const result = await ended(turn);
    expect(result).toMatchObject({
      status: "failed",
      turn: { failure: { class: "workflow_gone" } },
    });
    expect(await ended(queued)).toMatchObject({ status: "completed", text: "Next answer." });
    const history = await readHistory(deployment.database, "default", turn.conversationId);
    expect(outputText(history)).toBe("Next answer.");
  });
});
