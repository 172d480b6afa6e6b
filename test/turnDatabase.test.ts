import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Turnkeeper } from "../src/client.ts";
import { anyFreePort } from "../src/dev/ports.ts";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, gate, text } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { migrateByUrl } from "./setup/migrateByUrl.ts";
import { startPostgres } from "./setup/postgresServer.ts";
import type { PostgresServer } from "./setup/postgresServer.ts";
import { startProxy } from "./setup/proxy.ts";
import { describeWith, sharedTemporal } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const whole = "One two three four";
const words = { deltas: ["One", " two", " three", " four"] };
const outageTimeoutMs = 60_000;

/** A handler's call that waits until the test lets it go on. */
let visits = 0;
let entered = Promise.withResolvers<void>();
let leave = Promise.withResolvers<void>();

const payTool = defineTool({
  name: "pay",
  description: "Must not run twice.",
  parameters: { type: "object", properties: {} },
  async handler() {
    visits += 1;
    entered.resolve();
    await leave.promise;
    return "paid";
  },
});

describeWith(["postgres", "temporal"], "a turn whose database goes away", () => {
  let postgres: PostgresServer;
  let deployment: Deployment;

  beforeAll(async () => {
    postgres = await startPostgres();
    await migrateByUrl(postgres.url());
    deployment = await deploy({
      databaseUrl: postgres.url(),
      tools: [payTool],
      agents: [defineAgent({ name: "default", model: "gpt-test", tools: ["pay"] })],
    });
  });

  afterAll(async () => {
    await deployment.close();
    await postgres.remove();
  });

  afterEach(() => {
    visits = 0;
    entered = Promise.withResolvers();
    leave = Promise.withResolvers();
    deployment.endScript();
  });

  const start = (): Promise<TurnHandle> => deployment.turnkeeper.turns.start({ input: "Hi" });

  /** A turn whose model has said something and pauses. */
  async function startPaused() {
    const pause = gate(2);
    deployment.simulator.script(text("", { ...words, pauseAfter: pause }));
    const turn = await start();
    await pause.reached;
    return { turn, pause };
  }

  async function expectOneCall(turn: TurnHandle): Promise<void> {
    expect(await ended(turn)).toMatchObject({ status: "completed", text: whole });
    expect(deployment.simulator.bill).toHaveLength(1);
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(ledger).toMatchObject([{ outcome: "used", attempt: 1 }]);
  }

  test(
    "in mid-stream goes on with the same call when it is back",
    async () => {
      const { turn, pause } = await startPaused();
      await postgres.crash();
      await postgres.start();
      pause.open();
      await expectOneCall(turn);
    },
    outageTimeoutMs,
  );

  test(
    "just after its admission is waited for until it is back",
    async () => {
      const { turn, pause } = await startPaused();
      await postgres.crash();
      const restarted = async () => {
        await postgres.start();
        pause.open();
      };
      const [result] = await Promise.all([turn.result(), restarted()]);
      expect(result).toMatchObject({ status: "completed", text: whole });
    },
    outageTimeoutMs,
  );

  test(
    "while the answer ends is ended once it is back, without another call",
    async () => {
      const { simulator } = deployment;
      const { turn, pause } = await startPaused();
      await postgres.crash();
      pause.open();
      await simulator.waitFor("finished");
      await expect(start()).rejects.toMatchObject({ code: "store_unavailable" });
      await postgres.start();
      await expectOneCall(turn);
    },
    outageTimeoutMs,
  );

  test(
    "while a tool runs keeps the tool's result, and runs it once",
    async () => {
      const { simulator } = deployment;
      simulator.script(calls([{ name: "pay", arguments: {} }]), text("Paid."));
      const turn = await start();
      await entered.promise;
      await postgres.crash();
      leave.resolve();
      await postgres.start();
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "Paid." });
      expect(visits).toBe(1);
      expect(JSON.stringify(simulator.requests[1]?.body.input)).toContain('"output":"paid"');
    },
    outageTimeoutMs,
  );
});

describeWith(["temporal"], "a client whose database is away when it connects", () => {
  test("says so and leaves no connection to Temporal open", async () => {
    const proxy = await startProxy(sharedTemporal().address);
    const databaseUrl = `postgres://127.0.0.1:${await anyFreePort()}/none`;
    const connecting = Turnkeeper.connect({ databaseUrl, temporalAddress: proxy.address });
    await expect(connecting).rejects.toMatchObject({ code: "store_unavailable" });
    await expect.poll(() => proxy.connections()).toBe(0);
    await proxy.close();
  });
});
