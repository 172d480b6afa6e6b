import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import { expect, test } from "vitest";
import { StoreUnavailable } from "../src/store/database.ts";
import type { Queryable } from "../src/store/database.ts";
import type { TurnEvent } from "../src/turn/events.ts";
import type { Turn } from "../src/turn/turn.ts";
import { delta, deltasOf, newWriter, open, patient } from "./setup/stepWriters.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import { admit, claimed, fence, recordedEvents } from "./setup/storeTurns.ts";

/** So long that what is written was not written by a tick. */
const never = { tickMs: 600_000, maxTickMs: 600_000 };

/** A place that no column can hold, and what the database says of it. */
const tooLarge = 2 ** 40;
const outOfRange = { code: expect.stringMatching(/^22/) as string };

/** Calls `before` ahead of each statement. */
function watched(database: Queryable, before: () => void | Promise<void>): Queryable {
  return {
    async query<Row>(sql: string, parameters?: readonly unknown[]) {
      await before();
      return database.query<Row>(sql, parameters);
    },
  };
}

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
    step.append(delta("One"), 1);
    await first.promise;
    for (const text of [" two", " three"]) step.append(delta(text), 1);
    await step.flush(patient);
    step.discard();
    expect(await deltasOf(database, turn)).toEqual(["One", " two three"]);
    expect(committed).toEqual([2, 3].map((number) => `${turn.id} ${number}`));
  });

  test("hands over for the ending what it has not written", async () => {
    const { database } = on;
    const turn = await running();
    const { step } = open(newWriter(database, never), fence(turn));
    step.append({ type: "test.mark" }, 1);
    for (const text of ["a", "b"]) step.append(delta(text, 1), 1);
    await step.flush(patient);
    for (const text of ["c", "d"]) step.append(delta(text, 1), 1);
    expect(await step.drain(patient)).toEqual([delta("cd", 1)]);
    expect(await deltasOf(database, turn)).toEqual(["ab"]);
    expect(step.append(delta("late"), 1)).toBe(true);
    expect(await step.drain(patient)).toEqual([]);
  });

  test("[3] stops quietly when its step has been taken by somebody else", async () => {
    const { database } = on;
    const turn = await running();
    const { step, told } = open(newWriter(database, never), fence(turn));
    await claimed(database, fence(turn, { attempt: 2 }));
    step.append(delta("late"), 1);
    await step.flush(patient);
    expect(told).toEqual({ fenced: 1, failed: [], cancelRequested: 0 });
    expect(step.append(delta("later"), 1)).toBe(true);
    expect(await step.drain(patient)).toEqual([]);
    expect(await deltasOf(database, turn)).toEqual([]);
    expect(told.fenced).toBe(1);
  });

  test("[12] tells that the turn is to be cancelled", async () => {
    const { database } = on;
    const turn = await running();
    await database.query("UPDATE turns SET cancel_requested_at = now() WHERE id = $1", [turn.id]);
    const { step, told } = open(newWriter(database, never), fence(turn));
    step.append(delta("Hello"), 1);
    await step.flush(patient);
    expect(told).toMatchObject({ fenced: 0, cancelRequested: 1 });
    step.discard();
  });

  test("[6] a write that the database refuses fails its own step, whose rest may not follow", async () => {
    const { database } = on;
    const turns = [await running(), await running()] as const;
    const writer = newWriter(database, never);
    const steps = turns.map((turn) => open(writer, fence(turn)));
    steps[0]?.step.append(delta("wrong"), tooLarge);
    steps[1]?.step.append(delta("right"), 1);
    await Promise.all(steps.map(({ step }) => step.flush(patient)));
    expect(steps.map(({ told }) => told)).toMatchObject([
      { fenced: 0, failed: [outOfRange] },
      { fenced: 0, failed: [] },
    ]);
    await expect(steps[0]?.step.drain(patient)).rejects.toMatchObject(outOfRange);
    expect(await deltasOf(database, turns[0])).toEqual([]);
    expect(await deltasOf(database, turns[1])).toEqual(["right"]);
    for (const { step } of steps) step.discard();
  });

  test("[6] drain does not hand over the rest when the write under way is refused", async () => {
    const { database } = on;
    const turn = await running();
    const sent = Promise.withResolvers<void>();
    const { step } = open(newWriter(watched(database, sent.resolve)), fence(turn));
    step.append(delta("wrong"), tooLarge);
    await sent.promise;
    step.append(delta("rest"), 1);
    await expect(step.drain(patient)).rejects.toMatchObject(outOfRange);
  });

  test("the first words take along what was said just before them, in one write", async () => {
    const { database } = on;
    const turn = await running();
    const first = Promise.withResolvers<number>();
    const writer = newWriter(database, never, (_, events) => first.resolve(events.length));
    const { step } = open(writer, fence(turn));
    step.append({ type: "test.mark" }, 1);
    // Nothing happens meanwhile: that is what is tested.
    await delay(20);
    step.append(delta("One"), 1);
    expect(await first.promise).toBe(2);
    step.discard();
  });

  test("a slow database is written to less often", async () => {
    const { database } = on;
    const turn = await running();
    const holdMs = 200;
    const startedAt: number[] = [];
    const second = Promise.withResolvers<void>();
    const slow = watched(database, async () => {
      startedAt.push(performance.now());
      if (startedAt.length === 2) second.resolve();
      await delay(holdMs);
    });
    const { step } = open(newWriter(slow, { tickMs: 1, maxTickMs: 60_000 }), fence(turn));
    step.append(delta("One"), 1);
    // Words come while the first write is under way, and long after its tick.
    for (const text of [" two", " three", " four"]) {
      await delay(holdMs / 4);
      step.append(delta(text), 1);
    }
    await second.promise;
    const [one = 0, two = 0] = startedAt;
    expect(two - one).toBeGreaterThan(1.5 * holdMs);
    await step.flush(patient);
    expect(await deltasOf(database, turn)).toEqual(["One", " two three four"]);
    step.discard();
  });

  test("[3] a write that was lost before its commit or after it is sent again and stored once", async () => {
    const { database } = on;
    const turn = await running();
    let losses = 4;
    const lose = (): never => {
      throw new StoreUnavailable(new Error("The connection is gone."));
    };
    const lossy: Queryable = {
      async query<Row>(sql: string, parameters?: readonly unknown[]) {
        const isLost = losses > 0;
        if (isLost && losses-- % 2 === 0) lose();
        const rows = await database.query<Row>(sql, parameters);
        return isLost ? lose() : rows;
      },
    };
    const { step } = open(newWriter(lossy), fence(turn));
    step.append(delta("One"), 1);
    await step.flush(patient);
    step.append(delta(" two"), 1);
    await step.flush(patient);
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

  const place = { item_id: "ig_1", output_index: 0 };
  const logprobs = [{ token: "a", top_logprobs: [{ token: "b".repeat(1_000) }] }];

  test.each<[string, (piece: string) => TurnEvent]>([
    ["text", delta],
    [
      "pictures",
      (piece) => ({
        type: "response.image_generation_call.partial_image",
        ...place,
        partial_image_b64: piece,
      }),
    ],
    [
      "whole items",
      (text) => ({ type: "response.output_item.done", item: { content: [{ text }] } }),
    ],
    ["probabilities", () => ({ ...delta(""), logprobs })],
  ])("[13] tells a fast stream of %s to wait before it takes too much memory", async (_, event) => {
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
    let pieces = 1;
    // What is under way comes on top of what waits.
    while (step.append(event(piece), 1) && pieces < 1_000) {
      pieces += 1;
      if (pieces === 20) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(pieces * piece.length).toBeLessThanOrEqual(2 * maxPendingBytes);
    await head.release();
    await step.flush(patient);
    const recorded = JSON.stringify(await recordedEvents(database, turn));
    expect(recorded.length).toBeGreaterThan(pieces * piece.length);
    step.discard();
  });

  test("[6] a step whose row somebody holds is written later, the others now", async () => {
    const { database } = on;
    const turns = [await admit(database), await admit(database)] as const;
    for (const turn of turns) await claimed(database, fence(turn));
    const row = await holding("SELECT number FROM steps WHERE turn_id = $1 FOR UPDATE", turns[0]);
    const writer = newWriter(database);
    const steps = turns.map((turn) => open(writer, fence(turn)).step);
    for (const [at, step] of steps.entries()) step.append(delta(`turn ${at}`), 1);
    await steps[1]?.flush(patient);
    expect(await deltasOf(database, turns[1])).toEqual(["turn 1"]);
    expect(await deltasOf(database, turns[0])).toEqual([]);
    await row.release();
    await steps[0]?.flush(patient);
    expect(await deltasOf(database, turns[0])).toEqual(["turn 0"]);
    for (const step of steps) step.discard();
  });
});
