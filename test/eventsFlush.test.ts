import { expect, test } from "vitest";
import { openPostgres } from "../src/store/postgres.ts";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { flushEvents, readEventsAfter } from "../src/store/eventLog.ts";
import { storeStep } from "../src/store/steps.ts";
import type { Fence } from "../src/store/fence.ts";
import { eventBody } from "../src/turn/events.ts";
import type { Turn } from "../src/turn/turn.ts";
import { describeOnPostgres } from "./setup/storeDrivers.ts";
import { admit, claimed, fence, recordedEvents, result } from "./setup/storeTurns.ts";

const turnCount = 20;
const rounds = 25;

/** A turn with two tools that run side by side, as steps 2 and 3. */
async function withTwoTools(database: Database): Promise<Turn> {
  const turn = await admit(database);
  await claimed(database, fence(turn));
  const tools = ["tool", "tool"];
  const calls = tools.map((name, at) => ({
    callId: `call_${at}`,
    name,
    arguments: "{}",
    outputIndex: at,
    itemId: `mcp_${at}`,
  }));
  const verdict = { next: "tools", tools, thenEnd: false } as const;
  await storeStep(database, turn, fence(turn), result([], { verdict, calls }), null);
  for (const step of [2, 3]) await claimed(database, fence(turn, { step }), { kind: "tool" });
  return turn;
}

/** Writes one event of every step in every round; what is locked is sent again. */
async function write(database: Database, fences: readonly Fence[]): Promise<void> {
  for (let flush = 1; flush <= rounds; flush++) {
    let left = fences;
    while (left.length > 0) {
      const entries = left.map((by) => ({
        ...by,
        flush,
        bodies: [eventBody({ type: "test.mark", mark: `${by.step}/${flush}` })],
        nextOutputIndex: 0,
        place: null,
      }));
      const outcomes = await flushEvents(database, entries);
      expect(outcomes.filter(({ state }) => state === "fenced")).toEqual([]);
      left = left.filter((_, at) => outcomes[at]?.state === "locked");
    }
  }
}

/** Follows turns until `isDone`; fails when it sees a number before the one in front of it. */
async function follow(
  database: Database,
  turns: readonly Turn[],
  isDone: () => boolean,
): Promise<Map<string, number>> {
  const seen = new Map(turns.map((turn) => [turn.id, -1]));
  for (let isLast = false; !isLast;) {
    isLast = isDone();
    const cursors = turns.map((turn) => ({ ...turn, after: seen.get(turn.id) ?? -1 }));
    for (const [turnId, events] of await readEventsAfter(database, cursors, 1_000)) {
      const after = seen.get(turnId) ?? -1;
      const numbers = events.map((event) => event.sequenceNumber);
      expect(numbers).toEqual(numbers.map((_, at) => after + 1 + at));
      seen.set(turnId, after + events.length);
    }
  }
  return seen;
}

describeOnPostgres("[6] flushes of many turns by processes of their own", (open) => {
  test("in opposite order neither deadlock nor leave a gap; nobody sees a number too early", async () => {
    const { database, url } = open;
    const turns: Turn[] = [];
    for (let at = 0; at < turnCount; at++) turns.push(await withTwoTools(database));
    const processes = [
      openPostgres({ url }),
      openPostgres({ url }),
      openPostgres({ url }),
    ] as const;
    const [first, second, third] = processes;
    let writing = 2;
    const writers = [
      write(
        first,
        turns.map((turn) => fence(turn, { step: 2 })),
      ),
      write(second, turns.map((turn) => fence(turn, { step: 3 })).toReversed()),
    ].map((each) => each.finally(() => (writing -= 1)));
    const following = follow(third, turns, () => writing === 0);
    await Promise.all([...writers, following]);
    for (const turn of turns) {
      const events = await recordedEvents(database, turn);
      expect((await following).get(turn.id)).toBe(events.length - 1);
      for (const step of [2, 3]) {
        const marks = events
          .map((event) => event["mark"])
          .filter((mark) => typeof mark === "string" && mark.startsWith(`${step}/`));
        expect(marks).toEqual(Array.from({ length: rounds }, (_, at) => `${step}/${at + 1}`));
      }
    }
    await Promise.all(processes.map((each) => each.close()));
  });

  test("skip a turn that is being ended, and are fenced once it has", async () => {
    const { database } = open;
    const turns = [await admit(database), await admit(database)] as const;
    for (const turn of turns) await claimed(database, fence(turn));
    const entries = turns.map((turn) => ({
      ...fence(turn),
      flush: 1,
      bodies: [eventBody({ type: "test.mark" })],
      nextOutputIndex: 0,
      place: null,
    }));
    // Somebody else's transaction has the first step's row.
    await database.transaction(async (tx) => {
      await tx.query("SELECT number FROM steps WHERE turn_id = $1 FOR UPDATE", [turns[0].id]);
      const outcomes = await flushEvents(database, entries);
      expect(outcomes.map(({ state }) => state)).toEqual(["locked", "stored"]);
    });
    await endTurn(database, turns[0], { status: "cancelled" });
    const outcomes = await flushEvents(database, entries);
    expect(outcomes.map(({ state }) => state)).toEqual(["fenced", "stored"]);
  });
});
