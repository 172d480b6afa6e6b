import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { defaultEventWriterSettings, EventWriter } from "../src/events/writer.ts";
import type { EventWriterSettings, OnCommitted, StepWriter } from "../src/events/writer.ts";
import { StoreUnavailable } from "../src/store/database.ts";
import type { Database } from "../src/store/database.ts";
import { openPostgres } from "../src/store/postgres.ts";
import type { Fence } from "../src/store/fence.ts";
import type { TurnEvent } from "../src/turn/events.ts";
import type { Turn } from "../src/turn/turn.ts";
import { migrateByUrl } from "./setup/migrateByUrl.ts";
import { startPostgres } from "./setup/postgresServer.ts";
import type { PostgresServer } from "./setup/postgresServer.ts";
import { describeWith } from "./setup/servers.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import { admit, claimed, fence, recordedEvents } from "./setup/storeTurns.ts";

function delta(text: string, index = 0): TurnEvent {
  const place = { item_id: "msg_1", output_index: index, content_index: 0 };
  return { type: "response.output_text.delta", ...place, delta: text };
}

async function deltasOf(database: Database, turn: Turn): Promise<string[]> {
  const events = await recordedEvents(database, turn);
  return events
    .filter((event) => event.type === "response.output_text.delta")
    .map((event) => event["delta"] as string);
}

interface Told {
  fenced: number;
  cancelRequested: number;
}

function open(writer: EventWriter, by: Fence): { step: StepWriter; told: Told } {
  const told: Told = { fenced: 0, cancelRequested: 0 };
  const step = writer.open(by, {
    fenced: () => (told.fenced += 1),
    cancelRequested: () => (told.cancelRequested += 1),
  });
  return { step, told };
}

function newWriter(
  database: Database,
  settings: Partial<EventWriterSettings> = {},
  onCommitted: OnCommitted = () => {},
): EventWriter {
  return new EventWriter(database, onCommitted, { ...defaultEventWriterSettings, ...settings });
}

/** So long that what is written was not written by a tick. */
const never = { tickMs: 600_000, maxTickMs: 600_000 };

describeOnBoth("EventWriter", (on) => {
  async function running(): Promise<Turn> {
    const turn = await admit(on.database);
    await claimed(on.database, fence(turn));
    return turn;
  }

  test("writes the first words of an answer at once and joins what comes after them", async () => {
    const { database } = on;
    const turn = await running();
    const committed: string[] = [];
    const first = Promise.withResolvers<void>();
    const writer = newWriter(database, never, (turnId, events) => {
      committed.push(...events.map((event) => `${turnId} ${event.sequenceNumber}`));
      first.resolve();
    });
    const { step } = open(writer, fence(turn));
    void step.append(delta("One"), 1);
    await first.promise;
    for (const text of [" two", " three"]) void step.append(delta(text), 1);
    await step.flush();
    step.discard();
    expect(await deltasOf(database, turn)).toEqual(["One", " two three"]);
    expect(committed).toEqual([2, 3].map((number) => `${turn.id} ${number}`));
  });

  test("hands over for the ending what it has not written", async () => {
    const { database } = on;
    const turn = await running();
    const { step } = open(newWriter(database, never), fence(turn));
    void step.append({ type: "test.mark" }, 1);
    for (const text of ["a", "b"]) void step.append(delta(text, 1), 1);
    await step.flush();
    for (const text of ["c", "d"]) void step.append(delta(text, 1), 1);
    expect(await step.drain()).toEqual([delta("cd", 1)]);
    expect(await deltasOf(database, turn)).toEqual(["ab"]);
    expect(step.append(delta("late"), 1)).toBeUndefined();
    expect(await step.drain()).toEqual([]);
  });

  test("[3] stops quietly when its step has been taken by somebody else", async () => {
    const { database } = on;
    const turn = await running();
    const { step, told } = open(newWriter(database, never), fence(turn));
    await claimed(database, fence(turn, { attempt: 2 }));
    void step.append(delta("late"), 1);
    await step.flush();
    expect(told).toEqual({ fenced: 1, cancelRequested: 0 });
    expect(step.append(delta("later"), 1)).toBeUndefined();
    expect(await step.drain()).toEqual([]);
    expect(await deltasOf(database, turn)).toEqual([]);
    expect(told.fenced).toBe(1);
  });

  test("[12] tells that the turn is to be cancelled", async () => {
    const { database } = on;
    const turn = await running();
    await database.query("UPDATE turns SET cancel_requested_at = now() WHERE id = $1", [turn.id]);
    const { step, told } = open(newWriter(database, never), fence(turn));
    void step.append(delta("Hello"), 1);
    await step.flush();
    expect(told).toMatchObject({ fenced: 0, cancelRequested: 1 });
    step.discard();
  });

  test("a write that the database refuses stops its own step and no other", async () => {
    const { database } = on;
    const turns = [await running(), await running()] as const;
    const writer = newWriter(database, never);
    const steps = turns.map((turn) => open(writer, fence(turn)));
    const tooLarge = 2 ** 40;
    void steps[0]?.step.append(delta("wrong"), tooLarge);
    void steps[1]?.step.append(delta("right"), 1);
    await Promise.all(steps.map(({ step }) => step.flush()));
    expect(steps.map(({ told }) => told.fenced)).toEqual([1, 0]);
    expect(await deltasOf(database, turns[0])).toEqual([]);
    expect(await deltasOf(database, turns[1])).toEqual(["right"]);
    for (const { step } of steps) step.discard();
  });

  test("[3] a write that was lost before its commit or after it is sent again and stored once", async () => {
    const { database } = on;
    const turn = await running();
    let losses = 4;
    const lose = (): never => {
      throw new StoreUnavailable(new Error("The connection is gone."));
    };
    const lossy: Database = {
      kind: database.kind,
      async query<Row>(sql: string, parameters?: readonly unknown[]) {
        const isLost = losses > 0;
        if (isLost && losses-- % 2 === 0) lose();
        const rows = await database.query<Row>(sql, parameters);
        return isLost ? lose() : rows;
      },
      transaction: (work) => database.transaction(work),
      notify: (channel, payload) => database.notify(channel, payload),
      listen: (channel, onMessage) => database.listen(channel, onMessage),
      close: () => database.close(),
    };
    const { step } = open(newWriter(lossy), fence(turn));
    void step.append(delta("One"), 1);
    await step.flush();
    void step.append(delta(" two"), 1);
    await step.flush();
    expect(await deltasOf(database, turn)).toEqual(["One", " two"]);
    expect(losses).toBe(0);
    step.discard();
  });
});

describeOnPostgres("EventWriter, while the database is slow", (on) => {
  async function holding(sql: string, turn: Turn): Promise<{ release: () => Promise<void> }> {
    const client = new Client({ connectionString: on.url });
    await client.connect();
    await client.query("BEGIN");
    await client.query(sql, [turn.id]);
    return {
      release: async () => {
        await client.query("COMMIT");
        await client.end();
      },
    };
  }

  test("[13] holds a fast stream back before it takes more memory than allowed", async () => {
    const { database } = on;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    const head = await holding(
      "SELECT turn_id FROM turn_heads WHERE turn_id = $1 FOR UPDATE",
      turn,
    );
    const maxPendingBytes = 64 * 1024;
    const { step } = open(newWriter(database, { maxPendingBytes }), fence(turn));
    const piece = "x".repeat(1_000);
    let pieces = 0;
    let held: Promise<void> | undefined;
    // What is under way comes on top of what waits.
    while (held === undefined && pieces < 1_000) {
      held = step.append(delta(piece), 1);
      pieces += 1;
      if (pieces === 20) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(pieces * piece.length).toBeLessThanOrEqual(2 * maxPendingBytes);
    await head.release();
    await held;
    expect((await deltasOf(database, turn)).join("")).toHaveLength(pieces * piece.length);
    step.discard();
  });

  test("[6] a step whose row somebody holds is written later, the others now", async () => {
    const { database } = on;
    const turns = [await admit(database), await admit(database)] as const;
    for (const turn of turns) await claimed(database, fence(turn));
    const row = await holding("SELECT number FROM steps WHERE turn_id = $1 FOR UPDATE", turns[0]);
    const writer = newWriter(database);
    const steps = turns.map((turn) => open(writer, fence(turn)).step);
    for (const [at, step] of steps.entries()) void step.append(delta(`turn ${at}`), 1);
    await steps[1]?.flush();
    expect(await deltasOf(database, turns[1])).toEqual(["turn 1"]);
    expect(await deltasOf(database, turns[0])).toEqual([]);
    await row.release();
    await steps[0]?.flush();
    expect(await deltasOf(database, turns[0])).toEqual(["turn 0"]);
    for (const step of steps) step.discard();
  });
});

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
      await step.append(delta(word), 1);
      if (at % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
      if (at % 100 === 50) await disturb(at);
    }
    await step.flush();
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
        while ((await admin.query(cut)).rowCount === 0);
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
    void step.append(delta("One"), 1);
    // The write has reached the server once it waits for the head.
    const waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    while ((await client.query(waiting)).rowCount === 0) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    const drained = step.drain();
    client.on("error", () => {});
    await server.stop();
    await server.start();
    expect(await drained).toEqual([]);
    expect(await deltasOf(database, turn)).toEqual(["One"]);
    await database.close();
  });
});
