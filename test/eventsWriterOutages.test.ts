import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { StoreUnavailable } from "../src/store/database.ts";
import type { Database } from "../src/store/database.ts";
import { openPostgres } from "../src/store/postgres.ts";
import type { Turn } from "../src/turn/turn.ts";
import { migrateByUrl } from "./setup/migrateByUrl.ts";
import { startPostgres } from "./setup/postgresServer.ts";
import type { PostgresServer } from "./setup/postgresServer.ts";
import { describeWith } from "./setup/servers.ts";
import { delta, deltasOf, newWriter, open, patient } from "./setup/stepWriters.ts";
import { admit, claimed, fence } from "./setup/storeTurns.ts";

describeWith(["postgres"], "EventWriter, while the database comes and goes", () => {
  let server: PostgresServer;
  let database: Database;
  let turn: Turn;

  beforeAll(async () => {
    server = await startPostgres();
    await migrateByUrl(server.url());
  });

  afterAll(() => server.remove());

  async function fresh(): Promise<void> {
    database = openPostgres({ url: server.url() });
    turn = await admit(database);
    await claimed(database, fence(turn));
  }

  /** Writes numbers, and calls `disturb` every so often in between. */
  async function writeThrough(disturb: (at: number) => Promise<void>): Promise<string> {
    const { step, told } = open(newWriter(database, { tickMs: 1 }), fence(turn));
    const words = Array.from({ length: 400 }, (_, at) => `${at} `);
    for (const [at, word] of words.entries()) {
      if (!step.append(delta(word), 1)) await step.flush(patient);
      if (at % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
      if (at % 100 === 50) await disturb(at);
    }
    await step.flush(patient);
    expect(told.fenced).toBe(0);
    step.discard();
    return words.join("");
  }

  describe("stores every word once, in order", () => {
    test("when its connection is cut again and again", async () => {
      await fresh();
      const admin = new Client({ connectionString: server.url() });
      await admin.connect();
      const cut = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'turnkeeper' AND pid <> pg_backend_pid()`;
      const whole = await writeThrough(async () => {
        // It comes back a moment after the last cut.
        await expect.poll(async () => (await admin.query(cut)).rowCount).toBeGreaterThan(0);
      });
      expect((await deltasOf(database, turn)).join("")).toBe(whole);
      await admin.end();
      await database.close();
    });

    test("when the server stops, or crashes, and comes back", async () => {
      await fresh();
      const whole = await writeThrough(async (at) => {
        await (at % 200 === 50 ? server.stop() : server.crash());
        await server.start();
      });
      expect((await deltasOf(database, turn)).join("")).toBe(whole);
      await database.close();
    });
  });

  test("drain waits for the database: what was sent and not answered is not handed over again", async () => {
    await fresh();
    const client = new Client({ connectionString: server.url() });
    await client.connect();
    await client.query("BEGIN");
    await client.query("SELECT turn_id FROM turn_heads WHERE turn_id = $1 FOR UPDATE", [turn.id]);
    const { step } = open(newWriter(database), fence(turn));
    step.append(delta("One"), 1);
    // The write has reached the server once it waits for the head.
    const waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    await expect.poll(async () => (await client.query(waiting)).rowCount).toBeGreaterThan(0);
    const drained = step.drain(patient);
    client.on("error", () => {});
    await server.stop();
    await server.start();
    expect(await drained).toEqual([]);
    expect(await deltasOf(database, turn)).toEqual(["One"]);
    await database.close();
  });

  test("who was told to stop waits no longer for a database that is gone", async () => {
    await fresh();
    const { step } = open(newWriter(database), fence(turn));
    step.append(delta("One"), 1);
    await step.flush(patient);
    await server.stop();
    const stop = new AbortController();
    step.append(delta(" two"), 1);
    const flushed = step.flush(stop.signal);
    stop.abort();
    await expect(flushed).rejects.toBeInstanceOf(StoreUnavailable);
    await expect(step.drain(stop.signal)).rejects.toBeInstanceOf(StoreUnavailable);
    await expect(step.flush(stop.signal)).rejects.toBeInstanceOf(StoreUnavailable);
    await server.start();
    // And one that is there gets its chance.
    await step.flush(stop.signal);
    expect(await deltasOf(database, turn)).toEqual(["One", " two"]);
    step.discard();
    await database.close();
  });

  test("a failover to a standby that is not the primary yet loses nothing", async () => {
    await fresh();
    const admin = new Client({ connectionString: server.url() });
    await admin.connect();
    // As after a failover: the pool's new connections cannot write, and stay so while they live.
    await admin.query("ALTER DATABASE postgres SET default_transaction_read_only = on");
    const standby = openPostgres({ url: server.url(), maxConnections: 1 });
    const { step, told } = open(newWriter(standby), fence(turn));
    await expect(
      standby.transaction((tx) => tx.query("DELETE FROM turn_events", [])),
    ).rejects.toBeInstanceOf(StoreUnavailable);
    const stop = AbortSignal.abort();
    step.append(delta("One"), 1);
    await expect(step.flush(stop)).rejects.toBeInstanceOf(StoreUnavailable);
    await admin.query("ALTER DATABASE postgres RESET default_transaction_read_only");
    await step.flush(patient);
    expect(await deltasOf(database, turn)).toEqual(["One"]);
    expect(told).toMatchObject({ fenced: 0, failed: [] });
    step.discard();
    await admin.end();
    await Promise.all([standby.close(), database.close()]);
  });
});
