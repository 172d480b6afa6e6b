import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Turnkeeper } from "../src/client.ts";
import { Offers } from "../src/offers.ts";
import { calls, text } from "../src/simulator/server.ts";
import { markWorker, offerChannel } from "../src/store/workers.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import type { Turn } from "../src/turn/turn.ts";
import { createEngine } from "../src/engine.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const tools = [
  defineTool({
    name: "echo",
    description: "Answers at once.",
    parameters: { type: "object", properties: {} },
    handler: () => "echo",
  }),
];
const agents = [defineAgent({ name: "default", model: "gpt-test", tools: ["echo"] })];

describeWith(["postgres", "temporal"], "a turn that a gateway offers to a worker", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({ agents, tools });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  const listWorkers = () => deployment.database.query("SELECT id FROM workers", []);

  /** What a gateway in a process of its own has: no worker, but offers to those of a task queue. */
  async function withOffers(
    offeredTo: string,
    work: (turnkeeper: Turnkeeper) => Promise<void>,
  ): Promise<void> {
    const { database, hub, temporal: client, taskQueue } = deployment;
    const searchAttributes = new Set<never>();
    const engine = createEngine({ client, taskQueue, eagerStart: false, searchAttributes });
    const offers = new Offers(database, offeredTo);
    await offers.ready;
    try {
      await work(new Turnkeeper({ database, hub, engine, headStart: offers.headStart }, "default"));
    } finally {
      offers.close();
    }
  }

  async function firstRun(turnId: string): Promise<string | undefined> {
    const [row] = await deployment.database.query<{ run_id: string }>(
      "SELECT run_id FROM steps WHERE turn_id = $1 AND number = 1",
      [turnId],
    );
    return row?.run_id;
  }

  test("begins before Temporal has named its run, and is called once", async () => {
    await expect.poll(listWorkers).toHaveLength(1);
    await withOffers(deployment.taskQueue, async ({ turns }) => {
      deployment.simulator.script(calls([{ name: "echo", arguments: {} }]), text("Done."));
      const turn = await turns.start({ input: "Go" });
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "Done." });
      expect(await firstRun(turn.id)).toMatch(/^head-start:/);
      expect(deployment.simulator.bill).toHaveLength(2);
      await expect
        .poll(() =>
          deployment.temporal.workflow
            .getHandle(turn.id)
            .result()
            .catch(() => null),
        )
        .toEqual({ status: "completed" });
    });
  });

  test("is left to the janitor where hundreds wait for Temporal to be told of them", async () => {
    await markWorker(deployment.database, { id: "idle", taskQueue: "away", hasRoom: true });
    const offers = new Offers(deployment.database, "away");
    await offers.ready;
    const turn = { id: "resp_1" } as Turn;
    const told: (() => void)[] = [];
    const tell = () => new Promise<void>((resolve) => void told.push(resolve));
    while (offers.headStart(turn, tell)) expect(told.length).toBeLessThan(1_000);
    const held = told.length;
    told.pop()?.();
    await expect.poll(() => offers.headStart(turn, tell)).toBe(true);
    expect(told).toHaveLength(held);
    offers.close();
  });

  test("is run by its workflow where the offer is lost", async () => {
    await markWorker(deployment.database, { id: "gone", taskQueue: "lost", hasRoom: true });
    await withOffers("lost", async ({ turns }) => {
      deployment.simulator.script(text("Done."));
      const turn = await turns.start({ input: "Go" });
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "Done." });
      expect(await firstRun(turn.id)).not.toMatch(/^head-start:/);
    });
  });

  test("starts by Temporal alone while no worker has room", async () => {
    await markWorker(deployment.database, { id: "full", taskQueue: "busy", hasRoom: false });
    const offered: string[] = [];
    const { database } = deployment;
    const subscription = await database.listen(offerChannel("full"), (id) => offered.push(id));
    await withOffers("busy", async ({ turns }) => {
      deployment.simulator.script(text("Done."));
      const turn = await turns.start({ input: "Go" });
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "Done." });
      expect(await firstRun(turn.id)).not.toMatch(/^head-start:/);
    });
    // Behind it, an offer would have come too.
    await database.notify(offerChannel("full"), "the end");
    await expect.poll(() => offered.at(-1)).toBe("the end");
    expect(offered).toEqual(["the end"]);
    await subscription.close();
  });
});
