import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { gate, text } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

/** A write that brings a delta with this word waits for whoever has the lock, and is refused then. */
const refuse = `
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(1);
  RAISE EXCEPTION 'This is refused.' USING ERRCODE = '22000';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON turn_events FOR EACH ROW
  WHEN (NEW.body LIKE '%.delta"%unrecordable%') EXECUTE FUNCTION refuse()`;

describeWith(["postgres", "temporal"], "[6] a turn whose answer the database refuses", () => {
  let deployment: Deployment;
  let admin: Client;

  beforeAll(async () => {
    deployment = await deploy();
    admin = new Client({ connectionString: deployment.databaseUrl });
    await admin.connect();
    await admin.query(refuse);
  });

  afterAll(async () => {
    await admin.end();
    await deployment.close();
  });

  afterEach(() => deployment.endScript());

  /** The turn says that it has failed, and the call is neither used nor made again. */
  async function expectFailed(turn: Parameters<typeof ended>[0]): Promise<void> {
    expect(await ended(turn)).toMatchObject({
      status: "failed",
      turn: { failure: { class: "internal" } },
    });
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(ledger).toMatchObject([{ outcome: "wasted", failureClass: "internal" }]);
    expect(deployment.simulator.bill).toHaveLength(1);
  }

  test("in mid-stream fails", async () => {
    const { simulator, turnkeeper } = deployment;
    const pause = gate(2);
    simulator.script(text("", { deltas: ["One", " unrecordable", " three"], pauseAfter: pause }));
    const turn = await turnkeeper.turns.start({ input: "Hi" });
    await simulator.waitFor("aborted");
    pause.open();
    await expectFailed(turn);
  });

  test("while it ends fails, and is not completed without the part", async () => {
    const { simulator, turnkeeper } = deployment;
    await admin.query("SELECT pg_advisory_lock(1)");
    const pause = gate(1);
    simulator.script(text("", { deltas: ["One unrecordable", " two"], pauseAfter: pause }));
    const turn = await turnkeeper.turns.start({ input: "Hi" });
    await pause.reached;
    const waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    await expect.poll(async () => (await admin.query(waiting)).rowCount).toBe(1);
    pause.open();
    await simulator.waitFor("finished");
    // Nothing shows from outside that the worker has read the end and waits for its write.
    await delay(300);
    await admin.query("SELECT pg_advisory_unlock(1)");
    await expectFailed(turn);
  });
});
