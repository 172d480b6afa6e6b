import { expect, test } from "vitest";
import { tellOfEnding } from "../src/activities/finishTurn.ts";
import { cancelTurn } from "../src/store/cancels.ts";
import { createConversation, readHistory } from "../src/store/conversations.ts";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import type { Ending } from "../src/store/endings.ts";
import { flushEvents } from "../src/store/eventLog.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { Replaced, storeStep } from "../src/store/steps.ts";
import { eventBody, parseEvent } from "../src/turn/events.ts";
import type { RecordedEvent, TurnEvent } from "../src/turn/events.ts";
import { failure } from "../src/turn/failures.ts";
import type { Item } from "../src/turn/items.ts";
import type { Turn } from "../src/turn/turn.ts";
import { accumulate } from "./setup/scriptedStreams.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import {
  admit,
  answer,
  claim,
  claimed,
  fence,
  functionCall,
  message,
  recordedEvents,
  reread,
  result,
  typesOf,
  usedCall,
} from "./setup/storeTurns.ts";

interface Lock {
  holder_turn_id: string | null;
  head_turn_id: string | null;
  pending_calls: string;
}

async function lockOf(database: Database, turn: Turn): Promise<Lock> {
  const [row] = await database.query<Lock>(
    "SELECT holder_turn_id, head_turn_id, pending_calls FROM conversations WHERE id = $1",
    [turn.conversationId],
  );
  return row as Lock;
}

const historyOf = (database: Database, turn: Turn) =>
  readHistory(database, "default", turn.conversationId);

/** The beginning of a message whose writer never finished it. */
async function writePartial(database: Database, turn: Turn, text: string): Promise<Item> {
  const item = { ...message(""), content: [], status: "in_progress" };
  const place = { item_id: item.id, output_index: 0, content_index: 0 };
  const part = { type: "output_text", text: "", annotations: [], logprobs: [] };
  const events: TurnEvent[] = [
    { type: "response.output_item.added", output_index: 0, item },
    { type: "response.content_part.added", ...place, part },
    { type: "response.output_text.delta", ...place, delta: text, logprobs: [] },
  ];
  await flushEvents(database, [
    { ...fence(turn), flush: 1, bodies: events.map(eventBody), nextOutputIndex: 1, place: null },
  ]);
  return item;
}

/** Everything that an ending changes. */
async function wholeRecord(database: Database, turn: Turn): Promise<unknown> {
  const rows = (sql: string, id: string) => database.query<Record<string, unknown>>(sql, [id]);
  return Promise.all([
    rows("SELECT * FROM turns WHERE id = $1", turn.id),
    rows("SELECT * FROM turn_heads WHERE turn_id = $1", turn.id),
    rows("SELECT * FROM turn_events WHERE turn_id = $1 ORDER BY sequence_number", turn.id),
    rows("SELECT * FROM steps WHERE turn_id = $1 ORDER BY number", turn.id),
    rows("SELECT * FROM model_calls WHERE turn_id = $1 ORDER BY id", turn.id),
    rows("SELECT * FROM conversations WHERE id = $1", turn.conversationId),
    rows("SELECT * FROM items WHERE conversation_id = $1 ORDER BY position", turn.conversationId),
    rows("SELECT id, status FROM turns WHERE conversation_id = $1", turn.conversationId),
  ]);
}

const endings: Ending[] = [
  { status: "completed" },
  { status: "incomplete", incompleteReason: "deadline" },
  { status: "cancelled" },
  { status: "failed", failure: failure("server_error") },
];

describeOnBoth("[1] an ending", (open) => {
  test("completed: appends input and output, frees the conversation, sums the usage", async () => {
    const { database } = open;
    const turn = await admit(database, { input: "Question" });
    const text = message("Answer");
    const ended = await answer(database, turn, [text]);
    expect(ended).toMatchObject({ outcome: "ended", status: "completed", granted: null });
    const after = await reread(database, turn);
    expect(after).toMatchObject({
      status: "completed",
      output: [text],
      usage: {
        input_tokens: 10,
        input_tokens_details: { cached_tokens: 2, cache_write_tokens: 3 },
        output_tokens: 5,
        output_tokens_details: { reasoning_tokens: 1 },
        total_tokens: 15,
      },
    });
    // Turns of the release before were put on record without it.
    const strip = `UPDATE turns SET usage = replace(usage, ',"cache_write_tokens":3', '') WHERE id = $1`;
    await database.query(strip, [turn.id]);
    expect((await reread(database, turn)).usage?.input_tokens_details).toEqual({
      cached_tokens: 2,
      cache_write_tokens: 0,
    });
    expect(await historyOf(database, turn)).toEqual([...turn.request.input, text]);
    expect(await lockOf(database, turn)).toMatchObject({
      holder_turn_id: null,
      head_turn_id: turn.id,
      pending_calls: "[]",
    });
    const events = await recordedEvents(database, turn);
    expect(typesOf(events)).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.output_item.done",
      "response.completed",
    ]);
    expect(accumulate(events)).toMatchObject({ id: turn.id, output: [text] });
  });

  test.each(["incomplete", "cancelled"] as const)(
    "%s: keeps the input and the partial answer, marked so",
    async (status) => {
      const { database } = open;
      const turn = await admit(database);
      await claimed(database, fence(turn));
      const { id } = await writePartial(database, turn, "Half an ans");
      await endTurn(database, turn, { status });
      const kept = { id, status: "incomplete", content: [{ text: "Half an ans" }] };
      expect((await reread(database, turn)).output).toMatchObject([kept]);
      expect(await historyOf(database, turn)).toMatchObject([...turn.request.input, kept]);
      const events = await recordedEvents(database, turn);
      expect(events.at(-1)).toMatchObject({ type: "response.incomplete", response: { status } });
      expect(accumulate(events)).toMatchObject({ output: [kept] });
      const ledger = await readModelCalls(database, "default", turn.id);
      expect(ledger).toMatchObject([{ outcome: "wasted", certainty: "estimated" }]);
    },
  );

  test("failed: leaves nothing in the conversation; the stream closes what was open", async () => {
    const { database } = open;
    const first = await admit(database);
    await answer(database, first);
    const before = await historyOf(database, first);
    const turn = await admit(database, { previous_response_id: first.id });
    await claimed(database, fence(turn));
    await writePartial(database, turn, "Half");
    await endTurn(database, turn, { status: "failed", failure: failure("server_error") });
    expect(await historyOf(database, turn)).toEqual(before);
    expect(await lockOf(database, turn)).toMatchObject({
      holder_turn_id: null,
      head_turn_id: first.id,
    });
    expect(await reread(database, turn)).toMatchObject({ output: [], usage: null });
    const events = await recordedEvents(database, turn);
    expect(typesOf(events).slice(-2)).toEqual(["response.output_item.done", "response.failed"]);
    // So the same request can simply be sent again.
    expect(await admit(database, { previous_response_id: first.id })).toMatchObject({
      status: "admitted",
      conversationId: first.conversationId,
    });
  });

  test("of a queued turn leaves nothing behind, and the holder keeps the conversation", async () => {
    const { database } = open;
    for (const ending of endings) {
      const holder = await admit(database);
      await answer(database, holder);
      const running = await admit(database, { previous_response_id: holder.id });
      const conversation = running.conversationId;
      const queued = await admit(database, { conversation }, { whenBusy: "queue" });
      const next = await admit(database, { conversation }, { whenBusy: "queue" });
      const before = await historyOf(database, holder);
      const ended = await endTurn(database, queued, ending);
      expect(ended).toMatchObject({ outcome: "ended", granted: null });
      expect(await historyOf(database, holder)).toEqual(before);
      expect(await lockOf(database, holder)).toMatchObject({
        holder_turn_id: running.id,
        head_turn_id: holder.id,
      });
      expect((await answer(database, running)).granted).toBe(next.id);
    }
  });

  test.each(endings)(
    "[2] $status: hands the conversation to the next in the queue",
    async (ending) => {
      const { database } = open;
      const { id: conversation } = await createConversation(database, "default", {}, []);
      const [first, second, third] = [
        await admit(database, { conversation }),
        await admit(database, { conversation }, { whenBusy: "queue" }),
        await admit(database, { conversation }, { whenBusy: "queue" }),
      ];
      expect((await answer(database, first, [], ending)).granted).toBe(second.id);
      expect((await lockOf(database, first)).holder_turn_id).toBe(second.id);
      expect((await reread(database, second)).status).toBe("admitted");
      expect((await reread(database, third)).status).toBe("queued");
      expect((await endTurn(database, second, ending)).granted).toBe(third.id);
    },
  );

  test("[2][9] passes over queued turns that do not answer what the conversation waits for", async () => {
    const { database } = open;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const first = await admit(database, { conversation });
    const queue = { whenBusy: "queue" } as const;
    const unanswering = await admit(database, { conversation }, queue);
    const output = { type: "function_call_output", call_id: "call_1", output: "1" };
    const answering = await admit(database, { conversation, input: [output] }, queue);
    const ended = await answer(database, first, [functionCall("call_1")]);
    expect(ended.granted).toBe(answering.id);
    // Who ended the first turn tells of the others too.
    if (ended.outcome !== "ended") throw new Error(ended.outcome);
    const announced = new Map<string, readonly RecordedEvent[]>();
    const told: string[] = [];
    tellOfEnding(
      {
        announce: (id, events) => void announced.set(id, events),
        startGranted: (id) => void told.push(id),
        cancelResponse: () => {},
      },
      ended,
    );
    expect([...announced.keys()]).toEqual([first.id, unanswering.id]);
    const recorded = await recordedEvents(database, unanswering);
    expect(announced.get(unanswering.id)?.map(parseEvent)).toEqual(recorded.slice(-1));
    expect(told.toSorted()).toEqual([unanswering.id, answering.id].toSorted());
    expect(await reread(database, unanswering)).toMatchObject({
      status: "failed",
      failure: { class: "unanswered_calls" },
    });
    expect((await lockOf(database, first)).holder_turn_id).toBe(answering.id);
    expect((await recordedEvents(database, unanswering)).at(-1)?.type).toBe("response.failed");
  });

  test("[9] only a completed turn asks for answers to its calls; one cut short takes them", async () => {
    const { database } = open;
    for (const ending of endings) {
      const turn = await admit(database);
      await answer(database, turn, [functionCall("call_1"), functionCall("call_2")], ending);
      const { pending_calls: pending } = await lockOf(database, turn);
      const calls = JSON.parse(pending) as { id: string; isOptional?: true }[];
      const idsOf = (isOptional?: true) =>
        calls.filter((call) => call.isOptional === isOptional).map(({ id }) => id);
      const both = ["call_1", "call_2"];
      expect(idsOf()).toEqual(ending.status === "completed" ? both : []);
      expect(idsOf(true)).toEqual(ending.status === "incomplete" ? both : []);
    }
  });

  test("[9] a call id that the provider uses again is asked for again", async () => {
    const { database } = open;
    const first = await admit(database);
    await answer(database, first, [functionCall("call_0")]);
    const output = { type: "function_call_output", call_id: "call_0", output: "1" };
    const next = { previous_response_id: first.id, input: [output] };
    const second = await admit(database, next);
    await answer(database, second, [functionCall("call_0")]);
    const pending = [{ type: "function_call", id: "call_0" }];
    expect((await lockOf(database, first)).pending_calls).toBe(JSON.stringify(pending));
  });

  test.each(endings)("$status: a terminal turn never changes", async (ending) => {
    const { database } = open;
    const turn = await admit(database);
    await answer(database, turn, [message("Hello")], ending);
    const before = await wholeRecord(database, turn);
    for (const other of endings) {
      const again = await endTurn(database, turn, other);
      expect(again).toMatchObject({ outcome: "already", status: ending.status, granted: null });
    }
    expect(await cancelTurn(database, turn)).toMatchObject({
      outcome: "ended",
      status: ending.status,
    });
    expect(await wholeRecord(database, turn)).toEqual(before);
  });

  test("[3] under a condition that does not hold changes nothing", async () => {
    const { database } = open;
    const turn = await admit(database);
    const failed = { status: "failed", failure: failure("workflow_gone") } as const;
    await claimed(database, fence(turn, { attempt: 2 }));
    const before = await wholeRecord(database, turn);
    for (const by of [
      { ifRunId: null },
      { ifRunId: "run-0" },
      { ifStep: fence(turn) },
      { ifStep: fence(turn, { attempt: 2, runId: "run-2" }) },
      { ifStep: fence(turn, { attempt: 2, step: 2 }) },
    ]) {
      expect((await endTurn(database, turn, failed, by)).outcome).toBe("fenced");
      expect(await wholeRecord(database, turn)).toEqual(before);
    }
    const by = { ifRunId: "run-1", ifStep: fence(turn, { attempt: 2 }) };
    expect((await endTurn(database, turn, failed, by)).outcome).toBe("ended");
  });

  test("adds up the usage of all steps, without wasted calls", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    const { modelCallId } = await claimed(database, fence(turn, { attempt: 2 }));
    const asked = result([], { verdict: { next: "tools", tools: [], thenEnd: false } });
    const first = fence(turn, { attempt: 2 });
    await storeStep(database, turn, first, asked, usedCall(modelCallId, 100, 10));
    const second = fence(turn, { step: 2 });
    const next = await claimed(database, second);
    const last = {
      fence: second,
      result: result([message("Done")]),
      modelCall: usedCall(next.modelCallId, 200, 20),
    };
    await endTurn(database, turn, { status: "completed" }, { lastStep: last });
    expect((await reread(database, turn)).usage).toMatchObject({
      input_tokens: 300,
      output_tokens: 30,
      total_tokens: 330,
    });
    const ledger = await readModelCalls(database, "default", turn.id);
    expect(ledger.map((call) => call.outcome)).toEqual(["wasted", "used", "used"]);
  });

  test("is all or none: when its last statement fails, nothing has changed", async () => {
    const { database } = open;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const turn = await admit(database, { conversation });
    await admit(database, { conversation }, { whenBusy: "queue" });
    const { modelCallId } = await claimed(database, fence(turn));
    await writePartial(database, turn, "Half");
    const before = await wholeRecord(database, turn);
    const last = {
      fence: fence(turn),
      result: result([message("Hello"), functionCall("call_1")]),
      modelCall: usedCall(modelCallId),
    };
    const refuse = (table: string) =>
      `CREATE FUNCTION refuse_${table}() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN RAISE EXCEPTION ''refused''; END';
       CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON ${table}
         FOR EACH ROW EXECUTE FUNCTION refuse_${table}()`;
    const tables = ["turn_events", "turn_heads", "items", "conversations", "turns", "steps"];
    for (const table of [...tables, "model_calls"]) {
      await database.query(refuse(table));
      const ending = endTurn(database, turn, { status: "completed" }, { lastStep: last });
      await expect(ending).rejects.toThrow("refused");
      await database.query(`DROP TRIGGER refuse ON ${table}`);
      expect(await wholeRecord(database, turn)).toEqual(before);
    }
    const ended = await endTurn(database, turn, { status: "completed" }, { lastStep: last });
    expect(ended.outcome).toBe("ended");
  });
});

describeOnPostgres("[1] endings at the same time", (open) => {
  test("one of them ends the turn, the others are told how it ended", async () => {
    const { database } = open;
    const turn = await admit(database);
    const { modelCallId } = await claimed(database, fence(turn));
    const last = {
      fence: fence(turn),
      result: result([message("Hello")]),
      modelCall: usedCall(modelCallId),
    };
    const outcomes = await Promise.all([
      endTurn(database, turn, { status: "completed" }, { lastStep: last }),
      ...endings.map((ending) => endTurn(database, turn, ending)),
      endTurn(database, turn, { status: "completed" }, { lastStep: last }),
    ]);
    const [winner, ...others] = outcomes.filter(({ outcome }) => outcome === "ended");
    expect(others).toEqual([]);
    const { status } = await reread(database, turn);
    expect(winner).toMatchObject({ status });
    const told = outcomes.filter(({ outcome }) => outcome === "already");
    expect(told).toHaveLength(5);
    for (const each of told) expect(each).toMatchObject({ status, granted: null });
    const events = await recordedEvents(database, turn);
    const ends = typesOf(events).filter((type) => /completed|failed|incomplete/.test(type));
    expect(ends).toHaveLength(1);
  });

  test("and steps, writes, claims and cancels of the same turns end without a deadlock", async () => {
    const { database } = open;
    const call = (callId: string) => ({
      callId,
      name: "tool",
      arguments: "{}",
      outputIndex: 0,
      itemId: `mcp_${callId}`,
    });
    const race = async (): Promise<void> => {
      const turn = await admit(database);
      const tools = ["tool", "tool", "tool"];
      const asked = result([], {
        verdict: { next: "tools", tools, thenEnd: false },
        calls: [call("a"), call("b"), call("c")],
        nextOutputIndex: 3,
      });
      await claimed(database, fence(turn));
      const quietly = async (work: Promise<unknown>): Promise<void> => {
        const error: unknown = await work.then(
          () => null,
          (cause: unknown) => cause,
        );
        if (error !== null) expect(error).toBeInstanceOf(Replaced);
      };
      await Promise.all([
        quietly(storeStep(database, turn, fence(turn), asked, null)),
        cancelTurn(database, turn),
      ]);
      // Where the step was stored first, nobody was at the turn, and the cancel has ended it.
      for (const step of [2, 3, 4]) await claim(database, fence(turn, { step }), { kind: "tool" });
      const write = (step: number) => ({
        ...fence(turn, { step }),
        flush: 1,
        bodies: [eventBody({ type: "test.mark" })],
        nextOutputIndex: 0,
        place: null,
      });
      const done = result([], { verdict: { next: "model" } });
      const more = result([], { ...asked, calls: asked.calls });
      await Promise.all([
        flushEvents(database, [write(2), write(3)]),
        quietly(storeStep(database, turn, fence(turn, { step: 2 }), done, null)),
        quietly(storeStep(database, turn, fence(turn, { step: 4 }), more, null)),
        endTurn(database, turn, { status: "incomplete", incompleteReason: "deadline" }),
        cancelTurn(database, turn),
        flushEvents(database, [write(3), write(2)]),
      ]);
      expect((await reread(database, turn)).status).toMatch(/incomplete|cancelled/);
      await recordedEvents(database, turn);
    };
    for (let round = 0; round < 10; round++) {
      await Promise.all([race(), race(), race()]);
    }
  });
});
