import { Client } from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { admitTurn } from "../src/store/admission.ts";
import { StoreUnavailable } from "../src/store/database.ts";
import type { Database } from "../src/store/database.ts";
import { cancelTurn } from "../src/store/cancels.ts";
import { endTurn } from "../src/store/endings.ts";
import { openPostgres } from "../src/store/postgres.ts";
import type { PostgresSettings } from "../src/store/postgres.ts";
import { openPostgresDoor } from "../crash/proxies/postgresProxy.ts";
import { Tripwire } from "../crash/tripwire.ts";
import { migrateByUrl } from "./setup/migrateByUrl.ts";
import { startPostgres } from "./setup/postgresServer.ts";
import type { PostgresServer } from "./setup/postgresServer.ts";
import { startProxy } from "./setup/proxy.ts";
import { describeWith } from "./setup/servers.ts";
import { admission, admit, claimed, fence, message, reread, result } from "./setup/storeTurns.ts";

describeWith(["postgres"], "a database that is out of reach is StoreUnavailable", () => {
  let server: PostgresServer;
  let admin: Client;
  const opened = new Set<Database>();

  beforeAll(async () => {
    server = await startPostgres();
    await migrateByUrl(server.url());
    admin = new Client({ connectionString: server.url() });
    admin.on("error", () => {});
    await admin.connect();
  });

  afterAll(async () => {
    await Promise.all([...opened].map((database) => database.close()));
    await admin.end().catch(() => {});
    await server.remove();
  });

  function open(settings: Partial<PostgresSettings> = {}): Database {
    const database = openPostgres({ url: server.url(), ...settings });
    opened.add(database);
    return database;
  }

  const unavailable = { name: "StoreUnavailable", code: "store_unavailable" };
  const one = (database: Database) => database.query<{ n: number }>("SELECT 1 AS n", []);
  const pidOf = async (tx: Pick<Database, "query">): Promise<number> =>
    (await tx.query<{ pid: number }>("SELECT pg_backend_pid() AS pid", []))[0]?.pid ?? 0;
  const cut = (pid: number) => admin.query("SELECT pg_terminate_backend($1, 5000)", [pid]);

  /** Commits a change unless it fails, and tells whether it is on record. */
  async function isOnRecord(key: string): Promise<boolean> {
    const { rowCount } = await admin.query("SELECT FROM leases WHERE id = $1", [key]);
    return rowCount === 1;
  }
  const insert = "INSERT INTO leases (id, until) VALUES ($1, now())";

  test("when the connection is cut in the middle of a transaction, which leaves nothing", async () => {
    const database = open();
    const work = database.transaction(async (tx) => {
      await tx.query(insert, ["cut"]);
      await cut(await pidOf(tx));
      await tx.query(insert, ["after"]);
    });
    await expect(work).rejects.toMatchObject(unavailable);
    expect(await isOnRecord("cut")).toBe(false);
    expect(await one(database)).toEqual([{ n: 1 }]);
  });

  test("when it is cut between the last statement and the commit", async () => {
    const database = open();
    const work = database.transaction(async (tx) => {
      tx.send(insert, ["commit"]);
      await cut(await pidOf(tx));
    });
    await expect(work).rejects.toBeInstanceOf(StoreUnavailable);
    expect(await isOnRecord("commit")).toBe(false);
  });

  test("when an idle connection is cut nobody notices: the next statement gets another", async () => {
    const database = open({ maxConnections: 1 });
    await cut(await pidOf(database));
    const answer = await one(database).catch(() => one(database));
    expect(answer).toEqual([{ n: 1 }]);
  });

  test("when a transaction idles, the server ends it: nobody holds locks over other waits", async () => {
    const database = open({ idleTransactionTimeoutMs: 50 });
    const work = database.transaction(async (tx) => {
      await tx.query(insert, ["idle"]);
      const pid = await pidOf(tx);
      // Only the server's own clock ends this wait.
      const connections = "SELECT FROM pg_stat_activity WHERE pid = $1";
      await expect.poll(async () => (await admin.query(connections, [pid])).rowCount).toBe(0);
      await tx.query("SELECT 1", []);
    });
    await expect(work).rejects.toMatchObject(unavailable);
    expect(await isOnRecord("idle")).toBe(false);
    expect(await one(database)).toEqual([{ n: 1 }]);
  });

  test("when a lock is not to be had in time; what came first is the reason, not what followed", async () => {
    const database = open({ statementTimeoutMs: 100 });
    const turn = await admit(database);
    await admin.query("BEGIN");
    await admin.query("SELECT FROM conversations WHERE id = $1 FOR UPDATE", [turn.conversationId]);
    const ending = endTurn(database, turn, { status: "cancelled" });
    await expect(ending).rejects.toMatchObject(unavailable);
    await expect(cancelTurn(database, turn)).rejects.toThrow("statement timeout");
    await admin.query("COMMIT");
    expect((await endTurn(database, turn, { status: "cancelled" })).outcome).toBe("ended");
  });

  test("while it refuses connections, who listens tries one at a time", async () => {
    const door = await openPostgresDoor(
      { host: "127.0.0.1", port: server.port },
      "listener",
      new Tripwire(),
    );
    const database = open({ url: `postgres://postgres@127.0.0.1:${door.port}/postgres` });
    const reconnected = Promise.withResolvers<void>();
    const subscription = await database.listen("turnkeeper_events", () => reconnected.resolve());
    const retryMs = 500;
    const tries = 5;
    const startedAt = performance.now();
    door.shut();
    await expect.poll(() => door.refused(), { timeout: 20_000 }).toBeGreaterThanOrEqual(tries);
    // A slow machine only makes it later; each try that doubles the tries makes it much sooner.
    expect(performance.now() - startedAt).toBeGreaterThan((tries - 1) * retryMs);
    door.open();
    await reconnected.promise;
    await subscription.close();
    await door.close();
  });

  test("when all connections are taken for too long", async () => {
    const database = open({ maxConnections: 1, connectTimeoutMs: 100 });
    const held = Promise.withResolvers<void>();
    const taken = Promise.withResolvers<void>();
    const holding = database.transaction(async (tx) => {
      await tx.query("SELECT 1", []);
      taken.resolve();
      await held.promise;
    });
    await taken.promise;
    await expect(one(database)).rejects.toMatchObject(unavailable);
    await expect(database.transaction(async () => 1)).rejects.toMatchObject(unavailable);
    held.resolve();
    await holding;
    expect(await one(database)).toEqual([{ n: 1 }]);
  });

  test("when the network swallows everything without a word", async () => {
    const proxy = await startProxy(`127.0.0.1:${server.port}`);
    const url = `postgres://postgres@${proxy.address}/postgres`;
    const database = open({ url, answerTimeoutMs: 200, connectTimeoutMs: 200 });
    await one(database);
    const work = database.transaction(async (tx) => {
      await tx.query(insert, ["frozen"]);
      proxy.freeze();
      await tx.query("SELECT 1", []);
    });
    await expect(work).rejects.toMatchObject(unavailable);
    await expect(one(database)).rejects.toMatchObject(unavailable);
    await expect(database.notify("turnkeeper_events", "")).rejects.toMatchObject(unavailable);
    await proxy.close();
    expect(await isOnRecord("frozen")).toBe(false);
  });

  test("when it swallows what a listener is to hear, the listener comes back", async () => {
    const proxy = await startProxy(`127.0.0.1:${server.port}`);
    const url = `postgres://postgres@${proxy.address}/postgres`;
    const database = open({ url, listenPingMs: 100, connectTimeoutMs: 500 });
    const heard: string[] = [];
    const subscription = await database.listen("turnkeeper_events", (text) => heard.push(text));
    proxy.freeze();
    // What was open stays silent for ever; only what is opened from now on gets through.
    await expect.poll(() => proxy.connections()).toBe(0);
    proxy.thaw();
    await expect.poll(() => heard).toContain("");
    await admin.query("NOTIFY turnkeeper_events, 'again'");
    await expect.poll(() => heard).toContain("again");
    await subscription.close();
    await proxy.close();
  });

  test("and what the database refuses is not: its own error comes through", async () => {
    const database = open();
    const failing = database.query("SELECT 1 / $1::int", [0]);
    await expect(failing).rejects.toMatchObject({ code: "22012" });
    const work = database.transaction(async (tx) => {
      tx.send(insert, ["refused"]);
      tx.send("SELECT 1 / $1::int", [0]);
      tx.send(insert, ["behind"]);
      return (await tx.query("SELECT 1", [])).length;
    });
    await expect(work).rejects.toMatchObject({ code: "22012" });
    const unawaited = database.transaction(async (tx) => {
      tx.send(insert, ["refused"]);
      tx.send("SELECT 1 / $1::int", [0]);
    });
    await expect(unawaited).rejects.toMatchObject({ code: "22012" });
    expect(await isOnRecord("refused")).toBe(false);
  });

  test("when the server is down; when it is back, everything goes on", async () => {
    const database = open();
    const turn = await admit(database);
    const { modelCallId } = await claimed(database, fence(turn));
    expect(modelCallId).not.toBeNull();
    const asked = admission();
    const last = { fence: fence(turn), result: result([message("Hello")]), modelCall: null };
    const end = () => endTurn(database, turn, { status: "completed" }, { lastStep: last });
    await server.stop();
    await expect(one(database)).rejects.toMatchObject(unavailable);
    await expect(admitTurn(database, asked)).rejects.toMatchObject(unavailable);
    await expect(end()).rejects.toMatchObject(unavailable);
    await expect(database.listen("turnkeeper_events", () => {})).rejects.toMatchObject(unavailable);
    await server.start();
    expect((await admitTurn(database, asked)).isNew).toBe(true);
    expect((await end()).outcome).toBe("ended");
    expect((await end()).outcome).toBe("already");
    expect((await reread(database, turn)).status).toBe("completed");
  });
});
