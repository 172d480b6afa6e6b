import { Client } from "pg";
import { pino } from "pino";
import { expect, test } from "vitest";
import { createEngine } from "../src/engine.ts";
import type { Engine } from "../src/engine.ts";
import { Janitor } from "../src/janitor.ts";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { createConversation } from "../src/store/conversations.ts";
import { openPostgres } from "../src/store/postgres.ts";
import {
  deleteOldDefaultEvents,
  dropOldPartitions,
  findExpiredQueuedTurns,
  findStaleTurns,
  makePartitions,
  takeUpkeepTurn,
} from "../src/store/upkeep.ts";
import { connectLazily } from "../src/temporal.ts";
import type { Turn } from "../src/turn/turn.ts";
import { createTestDatabase } from "./setup/database.ts";
import { describeWith, sharedTemporal, uniqueTaskQueue } from "./setup/servers.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import { admit, answer, recordedEvents, reread } from "./setup/storeTurns.ts";

async function partitionsOf(database: Database): Promise<string[]> {
  const rows = await database.query<{ name: string }>(
    `SELECT inhrelid::regclass::text AS name FROM pg_inherits
     WHERE inhparent = 'turn_events'::regclass ORDER BY 1`,
    [],
  );
  return rows.map((row) => row.name);
}

/** Partitions from today on are old enough to go. */
const dropAll = -10;

describeOnBoth("partitions of the event log", (open) => {
  test("are made for today and the days ahead, once; events of these days lie in them", async () => {
    const { database } = open;
    await makePartitions(database, 3);
    const made = await partitionsOf(database);
    expect(made).toHaveLength(5);
    await makePartitions(database, 3);
    expect(await partitionsOf(database)).toEqual(made);
    const turn = await admit(database);
    await answer(database, turn);
    expect(await recordedEvents(database, turn)).toHaveLength(5);
    const left = await database.query("SELECT turn_id FROM turn_events_default", []);
    expect(left).toEqual([]);
  });

  test("are dropped when they are old, never with a turn that has not ended", async () => {
    const { database } = open;
    await makePartitions(database, 3);
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const running = await admit(database, { conversation });
    const queued = await admit(database, { conversation }, { whenBusy: "queue" });
    const before = await partitionsOf(database);
    expect(await dropOldPartitions(database, 0)).toEqual([]);
    const dropped = await dropOldPartitions(database, dropAll);
    // Tomorrow's have no turns.
    expect(dropped).toHaveLength(3);
    expect(await recordedEvents(database, running)).toHaveLength(1);
    expect(await recordedEvents(database, queued)).toHaveLength(2);
    for (const turn of [queued, running]) await endTurn(database, turn, { status: "cancelled" });
    expect(await dropOldPartitions(database, dropAll)).toHaveLength(1);
    expect(before).toHaveLength(5);
    expect(await partitionsOf(database)).toEqual(["turn_events_default"]);
    expect(await recordedEvents(database, running)).toEqual([]);
    // Events without a partition of their own are on record all the same.
    const late = await admit(database);
    await answer(database, late);
    expect(await recordedEvents(database, late)).toHaveLength(5);
    await makePartitions(database, 1);
    expect(await partitionsOf(database)).toHaveLength(2);
    expect(await recordedEvents(database, late)).toHaveLength(5);
  });
});

describeWith(["postgres"], "a reader of the whole event log, such as a backup", () => {
  test("does not have everybody wait behind the making and dropping of partitions", async () => {
    const { url } = await createTestDatabase();
    const database = openPostgres({ url });
    await makePartitions(database, 0);
    const turn = await admit(database);
    const before = await partitionsOf(database);
    const reader = new Client({ connectionString: url });
    await reader.connect();
    await reader.query("BEGIN");
    await reader.query("SELECT FROM turn_events");
    const upkeep = Promise.all([makePartitions(database, 3), dropOldPartitions(database, dropAll)]);
    await answer(database, turn);
    await upkeep;
    expect(await partitionsOf(database)).toEqual(before);
    await reader.query("COMMIT");
    await makePartitions(database, 3);
    expect((await partitionsOf(database)).length).toBeGreaterThan(before.length);
    await reader.end();
    await database.close();
  });
});

describeOnBoth("events that lie in the default partition", (open) => {
  test("are deleted when they are old, all of a turn at once, never of one that has not ended", async () => {
    const { database } = open;
    await dropOldPartitions(database, dropAll);
    const running = await admit(database);
    const ended = [await admit(database), await admit(database)];
    for (const turn of ended) await answer(database, turn);
    const left = () => Promise.all(ended.map((turn) => recordedEvents(database, turn)));
    expect(await deleteOldDefaultEvents(database, 0, 10)).toBe(0);
    expect(await deleteOldDefaultEvents(database, dropAll, 1)).toBe(1);
    const counts = (await left()).map((events) => events.length);
    expect(counts.toSorted((one, other) => one - other)).toEqual([0, 5]);
    expect(await deleteOldDefaultEvents(database, dropAll, 10)).toBe(1);
    expect(await left()).toEqual([[], []]);
    expect(await deleteOldDefaultEvents(database, dropAll, 10)).toBe(0);
    expect(await recordedEvents(database, running)).toHaveLength(1);
  });
});

describeOnBoth("turns that need looking after", (open) => {
  test("are all found, page by page, oldest first; those that wait in a queue are not", async () => {
    const { database } = open;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const turns = [await admit(database, { conversation })];
    await admit(database, { conversation }, { whenBusy: "queue" });
    for (let at = 0; at < 4; at++) turns.push(await admit(database));
    await answer(database, await admit(database));
    const found: string[] = [];
    for (let after: string | null = null; ;) {
      const page = await findStaleTurns(database, 0, 2, after);
      found.push(...page.map((turn) => turn.id));
      if (page.length < 2) break;
      after = page.at(-1)?.id ?? null;
    }
    expect(found).toEqual(turns.map((turn) => turn.id));
    // Their bodies may be large; none is read to look after a turn.
    const [oldest] = await findStaleTurns(database, 0, 1);
    const { id, conversationId, runId, deadlineAt } = turns[0] as Turn;
    expect(oldest).toEqual({ id, conversationId, runId, deadlineAt });
    expect(await findStaleTurns(database, 3_600_000, 10)).toEqual([]);
  });

  test("in a queue are found once their deadline has passed", async () => {
    const { database } = open;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    await admit(database, { conversation });
    const queue = { whenBusy: "queue" } as const;
    await admit(database, { conversation }, queue);
    const late = await admit(database, { conversation }, queue);
    await database.query(
      "UPDATE turns SET deadline_at = now() - interval '1 second' WHERE id = $1",
      [late.id],
    );
    const found = await findExpiredQueuedTurns(database, 10);
    expect(found.map((turn) => turn.id)).toEqual([late.id]);
    expect(await findExpiredQueuedTurns(database, 10, late.id)).toEqual([]);
  });
});

describeOnPostgres("upkeep", (open) => {
  test("is done by one process of a deployment at a time", async () => {
    const processes = Array.from({ length: 10 }, () => openPostgres({ url: open.url }));
    const hour = 3_600_000;
    let working = 0;
    let most = 0;
    const work = async (): Promise<void> => {
      working += 1;
      most = Math.max(most, working);
      await open.database.query("SELECT 1", []);
      working -= 1;
    };
    const took = await Promise.all(processes.map((each) => takeUpkeepTurn(each, hour, work)));
    expect(took.filter(Boolean)).toHaveLength(1);
    expect(most).toBe(1);
    // A process that has died holds its turn no longer than it said.
    await open.database.query("UPDATE leases SET until = now() - interval '1 second'", []);
    const again = await Promise.all(processes.map((each) => takeUpkeepTurn(each, hour, work)));
    expect(again.filter(Boolean)).toHaveLength(1);
    await Promise.all(processes.map((each) => each.close()));
  });

  test("makes and drops partitions while turns are written, without harm to them", async () => {
    const { database } = open;
    const processes = [openPostgres({ url: open.url }), openPostgres({ url: open.url })];
    const upkeep = processes.map(async (each) => {
      for (let round = 0; round < 5; round++) {
        await makePartitions(each, 2);
        await dropOldPartitions(each, 30);
      }
    });
    const turns = Array.from({ length: 10 }, async () => {
      const turn = await admit(database);
      await answer(database, turn);
      expect(await recordedEvents(database, turn)).toHaveLength(5);
    });
    await Promise.all([...upkeep, ...turns]);
    await Promise.all(processes.map((each) => each.close()));
  });
});

describeWith(["postgres", "temporal"], "the janitor", () => {
  const settings = { roundMs: 100, patienceMs: 0, eventRetentionDays: 30 };

  /** A janitor that goes its rounds in a database of its own while `work` runs. */
  async function withJanitor(
    engine: Engine,
    work: (database: Database, janitor: Janitor) => Promise<void>,
    over: { roundMs?: number } = {},
  ): Promise<void> {
    const database = openPostgres({ url: (await createTestDatabase()).url });
    const log = pino({ level: "silent" });
    const [announce, startGranted, cancelResponse] = [() => {}, () => {}, () => {}];
    const parts = { database, engine, log, announce, startGranted, cancelResponse };
    const janitor = new Janitor(parts, { ...settings, ...over });
    try {
      await work(database, janitor);
    } finally {
      await janitor.close();
      await database.close();
    }
  }

  function engineAt(address: string) {
    const { client, connection } = connectLazily({ address });
    const options = { taskQueue: uniqueTaskQueue(), eagerStart: false };
    const engine = createEngine({ client, ...options, searchAttributes: new Set() });
    return { engine, disconnect: () => connection.close() };
  }

  test("ends queued turns that are too late, also while Temporal is out of reach", async () => {
    const { engine, disconnect } = engineAt("127.0.0.1:1");
    await withJanitor(engine, async (database, janitor) => {
      const { id: conversation } = await createConversation(database, "default", {}, []);
      await admit(database, { conversation });
      const late = await admit(database, { conversation }, { whenBusy: "queue" });
      await database.query(
        "UPDATE turns SET deadline_at = now() - interval '1 second' WHERE id = $1",
        [late.id],
      );
      janitor.start();
      await expect.poll(async () => (await reread(database, late)).status).toBe("incomplete");
    });
    await disconnect();
  });

  test("starts the turns behind one that Temporal will not hear of", async () => {
    const { engine, disconnect } = engineAt(sharedTemporal().address);
    await withJanitor(engine, async (database, janitor) => {
      const longerThanTemporalTakes = 2_000;
      await admit(database, {}, { turnId: "resp_".padEnd(longerThanTemporalTakes, "x") });
      const turn = await admit(database);
      janitor.start();
      await expect.poll(() => engine.currentRun(turn.id)).not.toBeNull();
    });
    await disconnect();
  });

  test("ends a round with its lease, and goes on behind it in the next one", async () => {
    const { engine, disconnect } = engineAt(sharedTemporal().address);
    const asked: string[] = [];
    const leases = new Set<string>();
    const turns: string[] = [];
    const looked = Promise.withResolvers<void>();
    let readLease = async (): Promise<void> => {};
    const watching: Engine = {
      ...engine,
      async currentRun(turnId) {
        asked.push(turnId);
        await readLease();
        if (asked.length === turns.length) looked.resolve();
        return { runId: "run-1", isRunning: true };
      },
    };
    await withJanitor(
      watching,
      async (database, janitor) => {
        readLease = async () => {
          const rows = await database.query<{ until: Date }>("SELECT until FROM leases", []);
          leases.add(String(rows[0]?.until.getTime()));
        };
        for (let at = 0; at < 50; at++) turns.push((await admit(database)).id);
        janitor.start();
        await looked.promise;
      },
      { roundMs: 1 },
    );
    expect(asked.slice(0, turns.length)).toEqual(turns);
    expect(leases.size).toBeGreaterThan(2);
    await disconnect();
  });
});
