import { expect, test } from "vitest";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { flushEvents } from "../src/store/eventLog.ts";
import {
  abandonHeadStart,
  adoptHeadStart,
  headStartRunId,
  markHeadStartsAlive,
} from "../src/store/headStarts.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { Replaced, storeStep } from "../src/store/steps.ts";
import type { CurrentRun } from "../src/store/claims.ts";
import type { Fence } from "../src/store/fence.ts";
import { eventBody } from "../src/turn/events.ts";
import type { Turn } from "../src/turn/turn.ts";
import type { ToolCall } from "../src/turn/verdict.ts";
import { describeOnBoth } from "./setup/storeDrivers.ts";
import {
  admit,
  answer,
  claim,
  claimed,
  fence,
  flush,
  marksOf,
  message,
  recordedEvents,
  reread,
  result,
  typesOf,
  usedCall,
} from "./setup/storeTurns.ts";

const currentIs =
  (runId: string | null): CurrentRun =>
  async () =>
    runId;

function toolCall(callId: string): ToolCall {
  return { callId, name: "tool", arguments: "{}", outputIndex: 0, itemId: `mcp_${callId}` };
}

/** A turn whose first step asked for two tools, both claimed by `run-1`. */
async function withRunningTools(database: Database): Promise<Turn> {
  const turn = await admit(database);
  const { modelCallId } = await claimed(database, fence(turn));
  const asked = result([], {
    verdict: { next: "tools", tools: ["tool", "tool"], thenEnd: false },
    calls: [toolCall("a"), toolCall("b")],
  });
  await storeStep(database, turn, fence(turn), asked, usedCall(modelCallId));
  for (const step of [2, 3]) await claimed(database, fence(turn, { step }), { kind: "tool" });
  return turn;
}

async function runOf(database: Database, turn: Turn): Promise<string | null> {
  return (await reread(database, turn)).runId;
}

describeOnBoth("[3] a claim", (open) => {
  test("takes the turn and the step, opens the ledger, and says in_progress once", async () => {
    const { database } = open;
    const turn = await admit(database);
    const first = await claimed(database, fence(turn));
    expect(first).toMatchObject({
      firstOutputIndex: 0,
      isUntried: true,
      wasRunning: false,
      call: null,
      shownIds: [],
    });
    expect(first.turn).toMatchObject({ status: "running", runId: "run-1" });
    const ledger = await readModelCalls(database, "default", turn.id);
    expect(ledger).toMatchObject([{ step: 1, attempt: 1, outcome: "open", certainty: "unknown" }]);
    await claimed(database, fence(turn, { attempt: 2 }));
    const events = await recordedEvents(database, turn);
    expect(typesOf(events)).toEqual(["response.created", "response.in_progress"]);
  });

  test("of an older attempt, and of the same one by somebody else, is fenced", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn, { attempt: 2 }));
    for (const attempt of [1, 2]) {
      expect(await claim(database, fence(turn, { attempt }))).toEqual({ outcome: "fenced" });
    }
    expect(await flush(database, fence(turn, { attempt: 2 }), 1, ["mine"])).toBe("stored");
  });

  test("[7] that is sent again under its token succeeds again and counts once", async () => {
    const { database } = open;
    const turn = await admit(database);
    const first = await claimed(database, fence(turn), { token: "token" });
    const again = await claimed(database, fence(turn), { token: "token" });
    const known = { isUntried: false, wasRunning: false, modelCallId: first.modelCallId };
    expect(again).toMatchObject(known);
    expect(await readModelCalls(database, "default", turn.id)).toHaveLength(1);
    expect(typesOf(await recordedEvents(database, turn))).toHaveLength(2);
  });

  test("[6][7] of the next attempt closes what the replaced one left, and counts it as wasted", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    const item = { ...message(""), content: [] };
    const place = { item_id: item.id, output_index: 0, content_index: 0 };
    const events = [
      { type: "response.output_item.added", output_index: 0, item },
      { type: "response.output_text.delta", ...place, delta: "Hal" },
    ];
    const entry = {
      ...fence(turn),
      flush: 1,
      bodies: events.map(eventBody),
      nextOutputIndex: 1,
      place: null,
    };
    await flushEvents(database, [entry]);
    const next = await claimed(database, fence(turn, { attempt: 2 }));
    // The provider may give the same ids again.
    expect(next).toMatchObject({ wasRunning: true, firstOutputIndex: 1, shownIds: [item.id] });
    const ledger = await readModelCalls(database, "default", turn.id);
    expect(ledger.map((call) => call.outcome)).toEqual(["wasted", "open"]);
    const closed = (await recordedEvents(database, turn)).at(-1);
    expect(closed).toMatchObject({
      type: "response.output_item.done",
      item: { id: item.id, status: "incomplete", content: [{ text: "Hal" }] },
    });
  });

  test("[7] of a finished step is answered from the record, whoever asks", async () => {
    const { database } = open;
    const turn = await withRunningTools(database);
    const recorded = {
      outcome: "recorded",
      verdict: { next: "tools", tools: ["tool", "tool"], thenEnd: false },
    };
    expect(await claim(database, fence(turn))).toEqual(recorded);
    expect(await claim(database, fence(turn, { attempt: 9 }))).toEqual(recorded);
    const options = { currentRun: currentIs("run-2") };
    expect(await claim(database, fence(turn, { runId: "run-2" }), options)).toEqual(recorded);
  });

  test("[7] in a turn that has ended is answered with its ending", async () => {
    const { database } = open;
    const turn = await admit(database);
    await answer(database, turn);
    const recorded = { outcome: "recorded", verdict: { next: "end", status: "completed" } };
    for (const by of [fence(turn), fence(turn, { step: 2 }), fence(turn, { runId: "run-2" })]) {
      expect(await claim(database, by)).toEqual(recorded);
    }
  });

  test("in a turn that waits for its conversation, or that is unknown, takes nothing", async () => {
    const { database } = open;
    const holder = await admit(database);
    await answer(database, holder);
    const running = await admit(database, { previous_response_id: holder.id });
    const conversation = running.conversationId;
    const queued = await admit(database, { conversation }, { whenBusy: "queue" });
    const options = { currentRun: currentIs("run-1") };
    expect(await claim(database, fence(queued), options)).toEqual({ outcome: "fenced" });
    expect((await reread(database, queued)).status).toBe("queued");
    const unknown = await claim(database, fence({ id: "resp_none" }), options);
    expect(unknown.outcome).not.toBe("claimed");
  });

  test("of another run succeeds only if Temporal calls that run the current one", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    const by = fence(turn, { runId: "run-2" });
    for (const current of ["run-1", "run-3", null]) {
      const options = { currentRun: currentIs(current) };
      expect(await claim(database, by, options)).toEqual({ outcome: "fenced" });
    }
    const outOfReach = { currentRun: () => Promise.reject(new Error("Temporal is away")) };
    await expect(claim(database, by, outOfReach)).rejects.toThrow("Temporal is away");
    expect(await runOf(database, turn)).toBe("run-1");
    expect(await flush(database, fence(turn), 1, ["mine"])).toBe("stored");
    const taken = await claimed(database, by, { currentRun: currentIs("run-2") });
    expect(taken.wasRunning).toBe(true);
    expect(await flush(database, fence(turn), 2, ["late"])).toBe("fenced");
  });

  test("of a run that was current when it asked, and is not any more, is fenced", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    const second = await claim(database, fence(turn, { runId: "run-2" }), {
      // The next run takes the turn while this one hears that it is current.
      currentRun: async () => {
        const by = fence(turn, { runId: "run-3" });
        await claimed(database, by, { currentRun: currentIs("run-3") });
        return "run-2";
      },
    });
    expect(second).toEqual({ outcome: "fenced" });
    expect(await runOf(database, turn)).toBe("run-3");
  });

  test.each([
    ["a running step", 2],
    ["a step that is finished already", 1],
  ])("by another run, of %s, takes all running steps from the old one", async (_, step) => {
    const { database } = open;
    const turn = await withRunningTools(database);
    const by = fence(turn, { runId: "run-2", step });
    await claim(database, by, { kind: "tool", currentRun: currentIs("run-2") });
    for (const old of [2, 3].map((each) => fence(turn, { step: each }))) {
      expect(await flush(database, old, 1, ["late"])).toBe("fenced");
      const store = storeStep(database, turn, old, result([]), null);
      await expect(store).rejects.toBeInstanceOf(Replaced);
    }
    const other = await claimed(database, fence(turn, { runId: "run-2", step: 3 }), {
      kind: "tool",
    });
    expect(other).toMatchObject({ wasRunning: true, call: { callId: "b" } });
  });
});

describeOnBoth("[3] a head start", (open) => {
  async function begun(database: Database): Promise<{ turn: Turn; by: Fence }> {
    const turn = await admit(database);
    const by = fence(turn, { runId: headStartRunId() });
    await claimed(database, by);
    return { turn, by };
  }
  const took = { currentRun: currentIs("run-1") };

  test("is left alone while its owner is seen, and taken over once it is not", async () => {
    const { database } = open;
    const { turn, by } = await begun(database);
    expect(await claim(database, fence(turn))).toEqual({ outcome: "head_started" });
    expect(await flush(database, by, 1, ["a"])).toBe("stored");
    await database.query(
      "UPDATE steps SET seen_at = now() - interval '1 hour' WHERE turn_id = $1",
      [turn.id],
    );
    await markHeadStartsAlive(database, [turn.id]);
    expect(await claim(database, fence(turn), took)).toEqual({ outcome: "head_started" });
    await database.query(
      "UPDATE steps SET seen_at = now() - interval '1 hour' WHERE turn_id = $1",
      [turn.id],
    );
    const taken = await claimed(database, fence(turn), took);
    expect(taken.wasRunning).toBe(true);
    expect(await flush(database, by, 2, ["late"])).toBe("fenced");
    const store = storeStep(database, turn, by, result([]), null);
    await expect(store).rejects.toBeInstanceOf(Replaced);
    await adoptHeadStart(database, by, "run-2");
    expect(await runOf(database, turn)).toBe("run-1");
    expect(await marksOf(database, turn)).toEqual(["a"]);
  });

  test("whose sign of life was held up, and comes with whoever takes it over, is left alone", async () => {
    const { database } = open;
    const { turn, by } = await begun(database);
    await database.query(
      "UPDATE steps SET seen_at = now() - interval '1 hour' WHERE turn_id = $1",
      [turn.id],
    );
    const late = async () => {
      await markHeadStartsAlive(database, [turn.id]);
      return "run-1";
    };
    const taking = await claim(database, fence(turn), { currentRun: late });
    expect(taking).toEqual({ outcome: "head_started" });
    expect(await runOf(database, turn)).toBe(by.runId);
    expect(await flush(database, by, 1, ["a"])).toBe("stored");
  });

  test("that gave up is taken over at once; one that was adopted writes to its end", async () => {
    const { database } = open;
    const given = await begun(database);
    await abandonHeadStart(database, given.by);
    expect((await claimed(database, fence(given.turn), took)).wasRunning).toBe(true);
    expect(await flush(database, given.by, 1, ["late"])).toBe("fenced");
    const { turn, by } = await begun(database);
    await adoptHeadStart(database, by, "run-1");
    expect(await runOf(database, turn)).toBe("run-1");
    expect(await flush(database, by, 1, ["a"])).toBe("stored");
    const last = { fence: by, result: result([message("Hello")]), modelCall: null };
    const ended = await endTurn(database, turn, { status: "completed" }, { lastStep: last });
    expect(ended.outcome).toBe("ended");
  });
});

describeOnBoth("[3] a write under its fence", (open) => {
  test("that is sent again stores nothing twice", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    expect(await flush(database, fence(turn), 1, ["a", "b"])).toBe("stored");
    expect(await flush(database, fence(turn), 1, ["a", "b"])).toBe("stored");
    expect(await flush(database, fence(turn), 2, ["c"])).toBe("stored");
    expect(await flush(database, fence(turn), 1, ["a", "b"])).toBe("stored");
    expect(await marksOf(database, turn)).toEqual(["a", "b", "c"]);
  });

  test("by a writer that has been replaced stores nothing, whatever its number", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    expect(await flush(database, fence(turn), 1, ["a"])).toBe("stored");
    await claimed(database, fence(turn, { attempt: 2 }));
    for (const number of [1, 2]) {
      expect(await flush(database, fence(turn), number, ["late"])).toBe("fenced");
    }
    expect(await marksOf(database, turn)).toEqual(["a"]);
    const store = storeStep(database, turn, fence(turn), result([message("late")]), null);
    await expect(store).rejects.toBeInstanceOf(Replaced);
    const ending = { status: "completed" } as const;
    const last = { fence: fence(turn), result: result([message("late")]), modelCall: null };
    const ended = await endTurn(database, turn, ending, { lastStep: last });
    expect(ended.outcome).toBe("fenced");
    expect((await reread(database, turn)).status).toBe("running");
    expect(await marksOf(database, turn)).toEqual(["a"]);
  });

  test("of a turn that has ended stores nothing: not by a step, not by another ending", async () => {
    const { database } = open;
    const turn = await withRunningTools(database);
    const ended = await endTurn(database, turn, { status: "cancelled" });
    expect(ended.outcome).toBe("ended");
    const before = await recordedEvents(database, turn);
    const after = await reread(database, turn);
    for (const step of [1, 2, 3]) {
      const by = fence(turn, { step });
      expect(await flush(database, by, 1, ["late"])).toBe("fenced");
      await expect(storeStep(database, turn, by, result([]), null)).rejects.toBeInstanceOf(
        Replaced,
      );
      const last = { fence: by, result: result([message("late")]), modelCall: null };
      const again = await endTurn(database, turn, { status: "completed" }, { lastStep: last });
      expect(again).toMatchObject({ outcome: "already", status: "cancelled" });
    }
    expect(await recordedEvents(database, turn)).toEqual(before);
    expect(await reread(database, turn)).toEqual(after);
  });

  test("tells that the turn is to be cancelled", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    await database.query("UPDATE turns SET cancel_requested_at = now() WHERE id = $1", [turn.id]);
    const entry = { ...fence(turn), flush: 1, bodies: [], nextOutputIndex: 0, place: null };
    expect(await flushEvents(database, [entry])).toMatchObject([{ cancelRequested: true }]);
  });

  test("of many turns stores each under its own fence", async () => {
    const { database } = open;
    const turns = await Promise.all([admit(database), admit(database), admit(database)]);
    for (const turn of turns) await claimed(database, fence(turn));
    await claimed(database, fence(turns[1], { attempt: 2 }));
    const entries = turns.map((turn) => ({
      ...fence(turn),
      flush: 1,
      bodies: [eventBody({ type: "test.mark", mark: turn.id })],
      nextOutputIndex: 0,
      place: null,
    }));
    const outcomes = await flushEvents(database, entries);
    expect(outcomes.map(({ state }) => state)).toEqual(["stored", "fenced", "stored"]);
    expect(await marksOf(database, turns[0])).toEqual([turns[0].id]);
    expect(await marksOf(database, turns[1])).toEqual([]);
  });
});
