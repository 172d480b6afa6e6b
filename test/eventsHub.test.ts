import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import { Turns } from "../src/turns.ts";
import type { Engine } from "../src/engine.ts";
import { defaultEventHubSettings, EventHub } from "../src/events/hub.ts";
import type { EventHubSettings } from "../src/events/hub.ts";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { flushEvents } from "../src/store/eventLog.ts";
import { dropOldPartitions, makePartitions } from "../src/store/upkeep.ts";
import { eventBody, isTerminalEvent, recordedType } from "../src/turn/events.ts";
import type { RecordedEvent } from "../src/turn/events.ts";
import type { Turn } from "../src/turn/turn.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import type { OpenDatabase } from "./setup/storeDrivers.ts";
import { admit, answer, claimed, fence, recordedEvents, reread } from "./setup/storeTurns.ts";

/** So long that what is seen was not seen by a reread. */
const noRereads = { rereadMs: 600_000 };

const hubs = new Set<EventHub>();

async function openHub(
  database: Database,
  settings: Partial<EventHubSettings> = {},
): Promise<EventHub> {
  const hub = await EventHub.open(database, { ...defaultEventHubSettings, ...settings });
  hubs.add(hub);
  return hub;
}

afterEach(async () => {
  for (const hub of hubs) await hub.close();
  hubs.clear();
});

async function running(database: Database): Promise<Turn> {
  const turn = await admit(database);
  await claimed(database, fence(turn));
  return turn;
}

/** Writes the next events of a turn, `size` characters each, and returns them. */
function writerOf(database: Database, turn: Turn) {
  let flush = 0;
  return async (count: number, size = 0): Promise<RecordedEvent[]> => {
    flush += 1;
    const mark = "x".repeat(size);
    const bodies = Array.from({ length: count }, () => eventBody({ type: "test.mark", mark }));
    const [outcome] = await flushEvents(database, [
      { ...fence(turn), flush, bodies, nextOutputIndex: 0, place: null },
    ]);
    const first = outcome?.first ?? 0;
    return bodies.map((body, at) => ({ sequenceNumber: first + at, body }));
  };
}

async function numbersOf(events: AsyncIterable<RecordedEvent[]>): Promise<number[]> {
  const numbers: number[] = [];
  for await (const batch of events) numbers.push(...batch.map((event) => event.sequenceNumber));
  return numbers;
}

const upTo = (last: number, after = -1): number[] =>
  Array.from({ length: last - after }, (_, at) => after + 1 + at);

describeOnBoth("[6] EventHub", (open) => {
  test("gives what has been and what comes, to the end, whoever wakes it", async () => {
    const { database } = open;
    const turn = await running(database);
    const hub = await openHub(database, noRereads);
    const seen = numbersOf(hub.subscribe(turn, -1));
    const write = writerOf(database, turn);
    hub.publish(turn.id, await write(3));
    await write(3);
    hub.wake();
    await write(3);
    await database.notify("turnkeeper_events", "");
    // Told of these before those that come before them.
    await write(3);
    hub.publish(turn.id, await write(3));
    await endTurn(database, turn, { status: "completed" });
    await database.notify("turnkeeper_events", "");
    expect(await seen).toEqual(upTo((await recordedEvents(database, turn)).length - 1));
  });

  test("a lost notification costs no event: it rereads", async () => {
    const { database } = open;
    const turn = await running(database);
    const hub = await openHub(database, { rereadMs: 20 });
    const seen = numbersOf(hub.subscribe(turn, -1));
    const write = writerOf(database, turn);
    for (let round = 0; round < 5; round++) await write(2);
    await endTurn(database, turn, { status: "completed" });
    expect(await seen).toEqual(upTo(12));
  });

  test("resumed at any number, misses nothing and repeats nothing", async () => {
    const { database } = open;
    const turn = await running(database);
    await writerOf(database, turn)(40);
    await endTurn(database, turn, { status: "completed" });
    const last = 42;
    const hub = await openHub(database, { maxBatchEvents: 7, pageEvents: 11 });
    for (const after of [-1, 0, 1, 6, 7, 20, 41]) {
      expect(await numbersOf(hub.subscribe(turn, after))).toEqual(upTo(last, after));
    }
    const together = [30, -1, 5].map((after) => numbersOf(hub.subscribe(turn, after)));
    expect(await Promise.all(together)).toEqual([upTo(last, 30), upTo(last), upTo(last, 5)]);
  });

  test("ends a subscription when its subscriber leaves, and breaks off all others when it closes", async () => {
    const { database } = open;
    const turn = await running(database);
    const hub = await openHub(database);
    const leaving = new AbortController();
    const left = numbersOf(hub.subscribe(turn, -1, leaving.signal));
    const stayed = numbersOf(hub.subscribe(turn, -1));
    leaving.abort();
    await left;
    const [broken] = await Promise.allSettled([stayed, hub.close()]);
    expect(broken).toMatchObject({ status: "rejected", reason: { code: "closed" } });
  });
});

describeOnPostgres("[6] EventHub, with many subscribers", (open: OpenDatabase) => {
  /** Reads a few batches at a time and comes back with the last number it saw. */
  async function readInPieces(
    hub: EventHub,
    turn: Turn,
    pieces: readonly number[],
    start: number,
  ): Promise<number[]> {
    const seen: number[] = [];
    let last = start;
    for (let piece = 0; ; piece++) {
      let batches = pieces[piece % pieces.length] ?? 1;
      for await (const batch of hub.subscribe(turn, last)) {
        seen.push(...batch.map((event) => event.sequenceNumber));
        const end = batch.at(-1) as RecordedEvent;
        last = end.sequenceNumber;
        if (isTerminalEvent(recordedType(end.body))) return seen;
        batches -= 1;
        if (batches === 0) break;
      }
    }
  }

  test("who come and go while it is written: each sees every number once, in order", async () => {
    const { database } = open;
    const subscriber = fc.record({
      pieces: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 }),
      start: fc.integer({ min: -1, max: 1 }),
    });
    const story = fc.record({
      subscribers: fc.array(subscriber, { minLength: 2, maxLength: 6 }),
      bursts: fc.array(
        fc.record({ count: fc.integer({ min: 1, max: 30 }), isTold: fc.boolean() }),
        {
          maxLength: 12,
        },
      ),
      maxBatchEvents: fc.integer({ min: 1, max: 8 }),
      pageEvents: fc.integer({ min: 2, max: 16 }),
    });
    await fc.assert(
      fc.asyncProperty(story, async ({ subscribers, bursts, maxBatchEvents, pageEvents }) => {
        const turn = await running(database);
        const hub = await openHub(database, { rereadMs: 10, maxBatchEvents, pageEvents });
        const seen = subscribers.map(({ pieces, start }) => readInPieces(hub, turn, pieces, start));
        const write = writerOf(database, turn);
        for (const { count, isTold } of bursts) {
          const events = await write(count);
          if (isTold) hub.publish(turn.id, events);
        }
        await endTurn(database, turn, { status: "completed" });
        const last = 2 + bursts.reduce((sum, { count }) => sum + count, 0);
        for (const [at, { start }] of subscribers.entries()) {
          expect(await seen[at]).toEqual(upTo(last, start));
        }
        await hub.close();
      }),
      { numRuns: 15 },
    );
  });

  test("a thousand slow ones neither hold up a fast one nor fill the memory", async () => {
    const { database } = open;
    const collect = collector();
    const turn = await running(database);
    const hub = await openHub(database, { rereadMs: 50 });
    const write = writerOf(database, turn);
    const fast = numbersOf(hub.subscribe(turn, -1));
    const gates = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const holding = [0, 0];
    const slow = Array.from({ length: 1_000 }, async () => {
      const seen: number[] = [];
      let batches = 0;
      for await (const batch of hub.subscribe(turn, -1)) {
        seen.push(...batch.map((event) => event.sequenceNumber));
        holding[batches] = (holding[batches] ?? 0) + 1;
        await gates[batches++]?.promise;
      }
      return seen.length;
    });
    const before = collect();
    // 20 MB of events.
    const [rounds, perRound, size] = [40, 50, 10_000];
    for (let round = 0; round < rounds; round++) hub.publish(turn.id, await write(perRound, size));
    const last = 1 + rounds * perRound + 1;
    await endTurn(database, turn, { status: "completed" });
    hub.wake();
    expect(await fast).toEqual(upTo(last));
    const maxGrowth = 150 * 1024 * 1024;
    expect(collect() - before).toBeLessThan(maxGrowth);
    // Now all of them are far behind what is kept in memory, each on its own.
    gates[0]?.resolve();
    await until(() => holding[1] === slow.length);
    expect(collect() - before).toBeLessThan(maxGrowth);
    hubs.delete(hub);
    const closed = hub.close();
    gates[1]?.resolve();
    const broken = await Promise.allSettled(slow);
    expect(broken.filter((each) => each.status === "fulfilled")).toEqual([]);
    await closed;
  });

  test("hears again after its listening connection was cut", async () => {
    const { database } = open;
    const turn = await running(database);
    const hub = await openHub(database, noRereads);
    const seen = numbersOf(hub.subscribe(turn, -1));
    const cut = await database.query(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
       WHERE application_name = 'turnkeeper-listener' AND datname = current_database()`,
      [],
    );
    expect(cut.length).toBeGreaterThan(0);
    // Nobody tells of these: the listener rereads when it is back.
    await endTurn(database, turn, { status: "completed" });
    expect(await seen).toEqual(upTo(2));
  });
});

describeOnPostgres("[6] events of an ended turn", (open) => {
  test("are handed out in batches that a slow subscriber may hold, to the end", async () => {
    const { database } = open;
    const turn = await running(database);
    const write = writerOf(database, turn);
    const batchBytes = 64 * 1024;
    for (const [count, bytes] of [
      [130, 10],
      [20, 10_000],
      [3, 2 * batchBytes],
    ] as const) {
      await write(count, bytes);
    }
    await endTurn(database, turn, { status: "completed" });
    const hub = await openHub(database);
    const turns = new Turns({ database, hub, engine: {} as Engine }, "default");
    const batches = await Array.fromAsync(await turns.watch(await reread(database, turn)));
    expect(batches.flat().map((event) => event.sequenceNumber)).toEqual(upTo(2 + 153));
    for (const batch of batches.filter((each) => each.length > 1)) {
      expect(batch.length).toBeLessThanOrEqual(64);
      expect(batch.reduce((sum, { body }) => sum + body.length, 0)).toBeLessThanOrEqual(batchBytes);
    }
  });
});

describeOnPostgres("[6] events that have been dropped", (open) => {
  test("by age are answered with stream_expired, the turn is there", async () => {
    const { database } = open;
    await makePartitions(database, 0);
    const hub = await openHub(database);
    const turns = new Turns({ database, hub, engine: {} as Engine }, "default");
    const unfinished = await running(database);
    const turn = await admit(database);
    await answer(database, turn);
    const ended = await reread(database, turn);
    expect(await numbersOf(await turns.watch(ended))).toEqual(upTo(4));
    // Today, too, is old enough now; but it has a turn that has not ended.
    const daysToCome = -1;
    expect(await dropOldPartitions(database, daysToCome)).toEqual([]);
    await database.query("DELETE FROM steps", []);
    await database.query(
      "UPDATE turns SET status = 'failed' WHERE status IN ('queued', 'admitted', 'running')",
      [],
    );
    expect(await dropOldPartitions(database, daysToCome)).toHaveLength(1);
    for (const after of [-1, 0, 3]) {
      const expired = turns.watch(ended, { after });
      await expect(expired).rejects.toMatchObject({ code: "stream_expired", httpStatus: 400 });
    }
    expect(await numbersOf(await turns.watch(ended, { after: 4 }))).toEqual([]);
    expect(await turns.read(turn.id)).toEqual(ended);
    expect((await turns.read(unfinished.id)).status).toBe("failed");
  });
});

/** Measures the heap in bytes after a full collection. */
function collector(): () => number {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  return () => {
    collect();
    return process.memoryUsage().heapUsed;
  };
}

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((resolve) => setImmediate(resolve));
}
