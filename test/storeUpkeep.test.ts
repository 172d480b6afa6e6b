import { expect, test } from "vitest";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { createConversation } from "../src/store/conversations.ts";
import { openPostgres } from "../src/store/postgres.ts";
import {
  dropOldPartitions,
  findExpiredQueuedTurns,
  findStaleTurns,
  makePartitions,
  takeUpkeepTurn,
} from "../src/store/upkeep.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import { admit, answer, recordedEvents } from "./setup/storeTurns.ts";

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
    expect(await findStaleTurns(database, 3_600_000, 10)).toEqual([]);
  });

  test("in a queue are found once their deadline has passed", async () => {
    const { database } = open;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    await admit(database, { conversation });
    const queue = { whenBusy: "queue" } as const;
    await admit(database, { conversation }, queue);
    const late = await admit(database, { conversation }, queue);
    await database.query("UPDATE turns SET deadline_at = now() WHERE id = $1", [late.id]);
    const found = await findExpiredQueuedTurns(database, 10);
    expect(found.map((turn) => turn.id)).toEqual([late.id]);
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
