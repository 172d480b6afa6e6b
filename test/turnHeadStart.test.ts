import type { Client } from "@temporalio/client";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, fault, gate, text } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import { workflowEnd } from "./setup/workflowEnd.ts";

const echo = defineTool({
  name: "echo",
  description: "Answers at once.",
  parameters: { type: "object", properties: {} },
  handler: () => "echo",
});

describeWith(["postgres", "temporal"], "a turn with a head start", () => {
  let deployment: Deployment;
  let temporal: Client;

  beforeAll(async () => {
    deployment = await deploy({
      headStart: true,
      tools: [echo],
      agents: [
        defineAgent({ name: "default", model: "gpt-test", tools: ["echo"] }),
        defineAgent({ name: "twice", model: "gpt-test", limits: { maxAttemptsPerStep: 2 } }),
      ],
    });
    ({ temporal } = deployment);
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  const start = (model = "default"): Promise<TurnHandle> =>
    deployment.turnkeeper.turns.start({ input: "Hi", model });

  /** One call each for the provider, the ledger and the workflow. */
  async function expectCalls(turn: TurnHandle, calls: number): Promise<void> {
    await workflowEnd(temporal, turn.id);
    expect(deployment.simulator.bill).toHaveLength(calls);
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(ledger).toHaveLength(calls);
    expect(ledger.filter(({ outcome }) => outcome === "open")).toEqual([]);
  }

  test("that ends before Temporal comes is called once", async () => {
    deployment.simulator.script(text("Quick."));
    const turn = await start();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: "Quick." });
    await expectCalls(turn, 1);
    const { historyLength } = await temporal.workflow.getHandle(turn.id).describe();
    expect(historyLength).toBeLessThanOrEqual(12);
  });

  test("that is joined while it runs is called once, and goes on with its tools", async () => {
    const pause = gate(1);
    deployment.simulator.script(
      calls([{ name: "echo", arguments: {} }], { text: "One moment.", pauseAfter: pause }),
      text("Done."),
    );
    const turn = await start();
    await pause.reached;
    await untilJoined(turn);
    pause.open();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: "One moment.Done." });
    await expectCalls(turn, 2);
  });

  /** The run on record is the workflow's as soon as its activity has joined. */
  async function untilJoined(turn: TurnHandle): Promise<void> {
    await expect
      .poll(async () => (await deployment.turnkeeper.turns.read(turn.id)).runId)
      .not.toMatch(/^head-start/);
  }

  test("that fails is tried again no sooner than the provider says", async () => {
    const { simulator } = deployment;
    const waitMs = 700;
    simulator.script(fault.rateLimit({ ms: waitMs }), text("Done."));
    const turn = await start();
    await simulator.waitFor("finished");
    const refusedAt = performance.now();
    await simulator.waitFor("request", ({ index }) => index === 1);
    expect(performance.now() - refusedAt).toBeGreaterThan(waitMs * 0.9);
    expect(await ended(turn)).toMatchObject({ status: "completed", text: "Done." });
    await expectCalls(turn, 2);
  });

  test("counts as a call against the limit of failed ones", async () => {
    deployment.simulator.script(fault.rateLimit({ ms: 1 }), fault.status(503));
    const turn = await start("twice");
    expect(await ended(turn)).toMatchObject({
      status: "failed",
      turn: { failure: { class: "overloaded" } },
    });
    await expectCalls(turn, 2);
  });

  test("that breaks off in mid-stream is called again, and the stream is exact", async () => {
    deployment.simulator.script(fault.reset(3), text("Done."));
    const turn = await start();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: "Done." });
    await expectCalls(turn, 2);
  });

  test("that the provider refuses fails the turn, and no more is called", async () => {
    deployment.simulator.script(fault.quota());
    const turn = await start();
    expect(await ended(turn)).toMatchObject({ status: "failed" });
    await expectCalls(turn, 1);
    const { status } = await temporal.workflow.getHandle(turn.id).describe();
    expect(status.name).toBe("FAILED");
  });

  test("is cancelled like any other, and keeps its partial answer", async () => {
    const pause = gate(2);
    deployment.simulator.script(text("", { deltas: ["One", " two", " three"], pauseAfter: pause }));
    const turn = await start();
    await pause.reached;
    await turn.cancel();
    await deployment.simulator.waitFor("aborted");
    expect(await ended(turn)).toMatchObject({ status: "cancelled" });
    await expectCalls(turn, 1);
  });
});
