import { describe, expect, test } from "vitest";
import { admitTurn } from "../src/store/admission.ts";
import { createConversation, deleteConversation, readHistory } from "../src/store/conversations.ts";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { outputText } from "../src/turn/items.ts";
import { maxQueuedTurns } from "../src/turn/limits.ts";
import { maxCallIdChars } from "../src/turn/pairs.ts";
import type { Turn } from "../src/turn/turn.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import {
  addProject,
  admission,
  admit,
  answer,
  functionCall,
  message,
  recordedEvents,
  reread,
  typesOf,
} from "./setup/storeTurns.ts";

async function countOf(database: Database, table: string): Promise<number> {
  const [row] = await database.query<{ n: number }>(`SELECT count(*) AS n FROM ${table}`, []);
  return row?.n ?? 0;
}

/** How much there is on record: what is refused must not change it. */
async function onRecord(database: Database): Promise<number[]> {
  const tables = ["turns", "conversations", "items", "turn_heads", "turn_events", "steps"];
  return Promise.all(tables.map((table) => countOf(database, table)));
}

async function holderOf(database: Database, conversationId: string): Promise<string | null> {
  const [row] = await database.query<{ holder_turn_id: string | null }>(
    "SELECT holder_turn_id FROM conversations WHERE id = $1",
    [conversationId],
  );
  return row?.holder_turn_id ?? null;
}

const newConversation = (database: Database) => createConversation(database, "default", {}, []);

describeOnBoth("admission", (open) => {
  test("[1] puts the turn, its first event and the lock on record", async () => {
    const { database } = open;
    const conversation = await newConversation(database);
    const turn = await admit(database, { conversation: conversation.id });
    expect(await reread(database, turn)).toEqual(turn);
    expect(turn).toMatchObject({ status: "admitted", runId: null, output: null });
    expect(await holderOf(database, conversation.id)).toBe(turn.id);
    const events = await recordedEvents(database, turn);
    expect(typesOf(events)).toEqual(["response.created"]);
    expect(events[0]).toMatchObject({ response: { id: turn.id, status: "in_progress" } });
  });

  test("refuses a project that is not there, and records nothing", async () => {
    const { database } = open;
    const before = await onRecord(database);
    const refused = admitTurn(database, { ...admission(), project: "nobody" });
    await expect(refused).rejects.toMatchObject({ code: "unknown_project", httpStatus: 404 });
    expect(await onRecord(database)).toEqual(before);
  });

  test("[1] stages the input: the conversation has nothing until the turn ends", async () => {
    const { database } = open;
    const turn = await admit(database);
    expect(await readHistory(database, "default", turn.conversationId)).toEqual([]);
    await answer(database, turn);
    expect(await readHistory(database, "default", turn.conversationId)).toHaveLength(2);
  });

  test("keeps a NUL and a lone surrogate of the request and of the answer", async () => {
    const { database } = open;
    const input = "NUL \0, surrogate \ud800.";
    const turn = await admit(database, { input, metadata: { key: input } });
    await answer(database, turn, [message(input)]);
    const history = await readHistory(database, "default", turn.conversationId);
    expect(history[0]).toMatchObject({ content: [{ text: input }] });
    expect(outputText(history)).toBe(input);
    expect((await reread(database, turn)).request.metadata).toEqual({ key: input });
    const events = await recordedEvents(database, turn);
    expect(events.at(-2)).toMatchObject({ item: { content: [{ text: input }] } });
  });

  test("[4] the same key gives the same turn, ended or not", async () => {
    const { database } = open;
    const ask = admission({}, { idempotencyKey: "same" });
    const first = await admitTurn(database, ask);
    const before = await onRecord(database);
    const second = await admitTurn(database, { ...ask, turnId: "resp_other" });
    expect(second).toEqual({ turn: first.turn, isNew: false, interrupted: null });
    expect(await onRecord(database)).toEqual(before);
    await answer(database, first.turn);
    const third = await admitTurn(database, { ...ask, turnId: "resp_third" });
    expect(third).toMatchObject({ isNew: false, turn: { id: first.turn.id, status: "completed" } });
  });

  test("[4] the same key with another request is a clear error, in one project", async () => {
    const { database } = open;
    await admit(database, {}, { idempotencyKey: "other" });
    const other = admission({ input: "Something else" }, { idempotencyKey: "other" });
    await expect(admitTurn(database, other)).rejects.toMatchObject({
      code: "idempotency_key_reused",
      httpStatus: 422,
    });
    await addProject(database, "team");
    const elsewhere = await admitTurn(database, { ...other, project: "team" });
    expect(elsewhere.isNew).toBe(true);
  });

  test("[4] the same key finds its turn where the request alone would be refused", async () => {
    const { database } = open;
    const { id: conversation } = await newConversation(database);
    const ask = admission({ conversation }, { idempotencyKey: "refused" });
    const { turn } = await admitTurn(database, ask);
    // While it runs the conversation is busy; after it the conversation waits for an answer.
    expect((await admitTurn(database, ask)).turn.id).toBe(turn.id);
    await answer(database, turn, [functionCall("call_1")]);
    expect((await admitTurn(database, ask)).turn.id).toBe(turn.id);
  });

  test("[2] a second turn is rejected or queued, as it asks", async () => {
    const { database } = open;
    const { id: conversation } = await newConversation(database);
    const first = await admit(database, { conversation });
    const before = await onRecord(database);
    await expect(admit(database, { conversation })).rejects.toMatchObject({
      code: "conversation_busy",
      httpStatus: 409,
    });
    expect(await onRecord(database)).toEqual(before);
    const second = await admit(database, { conversation }, { whenBusy: "queue" });
    expect(second.status).toBe("queued");
    expect(await holderOf(database, conversation)).toBe(first.id);
    const events = await recordedEvents(database, second);
    expect(typesOf(events)).toEqual(["response.created", "response.queued"]);
  });

  test("[13] the queue has an end", async () => {
    const { database } = open;
    const { id: conversation } = await newConversation(database);
    await admit(database, { conversation });
    for (let waiting = 0; waiting < maxQueuedTurns; waiting++) {
      await admit(database, { conversation }, { whenBusy: "queue" });
    }
    const before = await onRecord(database);
    const full = admit(database, { conversation }, { whenBusy: "queue" });
    await expect(full).rejects.toMatchObject({ code: "queue_full", httpStatus: 429 });
    expect(await onRecord(database)).toEqual(before);
  });

  test("what is refused leaves nothing on record", async () => {
    const { database } = open;
    const { id: conversation } = await newConversation(database);
    await answer(database, await admit(database, { conversation }), [functionCall("call_9")]);
    const running = await admit(database);
    const failed = await admit(database);
    await endTurn(database, failed, { status: "failed" });
    const output = { type: "function_call_output", call_id: "call_0", output: "1" };
    const before = await onRecord(database);
    const refused: [Parameters<typeof admission>[0], string][] = [
      [{ conversation: "conv_none" }, "conversation_not_found"],
      [{ conversation }, "unanswered_calls"],
      [{ conversation, input: [output] }, "unknown_call"],
      [{ previous_response_id: "resp_none" }, "previous_response_not_found"],
      [{ previous_response_id: running.id }, "conversation_busy"],
      [{ previous_response_id: failed.id }, "previous_response_unusable"],
    ];
    for (const [request, code] of refused) {
      await expect(admit(database, request)).rejects.toMatchObject({ code });
    }
    expect(await onRecord(database)).toEqual(before);
  });

  test.each([
    ["custom_tool_call", { call_id: "c" }, { type: "custom_tool_call_output", call_id: "c" }],
    ["shell_call", { call_id: "c" }, { type: "shell_call_output", call_id: "c" }],
    ["apply_patch_call", { call_id: "c" }, { type: "apply_patch_call_output", call_id: "c" }],
    ["computer_call", { call_id: "c" }, { type: "computer_call_output", call_id: "c" }],
    ["local_shell_call", { call_id: "c" }, { type: "local_shell_call_output", id: "c" }],
    [
      "tool_search_call",
      { call_id: "c", execution: "client" },
      { type: "tool_search_output", call_id: "c", execution: "client" },
    ],
    ["mcp_approval_request", {}, { type: "mcp_approval_response", approval_request_id: "it" }],
  ])("[9] a %s waits for its answer", async (type, fields, output) => {
    const { database } = open;
    const asking = await admit(database);
    await answer(database, asking, [{ type, id: "it", ...fields }]);
    const next = { previous_response_id: asking.id };
    await expect(admit(database, next)).rejects.toMatchObject({ code: "unanswered_calls" });
    // An output of another type answers another call.
    const other = { type: "function_call_output", call_id: "c", output: "1" };
    for (const input of [[other], [output, other]]) {
      const refused = admit(database, { ...next, input });
      await expect(refused).rejects.toMatchObject({ code: "unknown_call" });
    }
    expect((await admit(database, { ...next, input: [output] })).status).toBe("admitted");
  });

  test("[9] a call that the provider answered itself waits for nobody", async () => {
    const { database } = open;
    const asking = await admit(database);
    await answer(database, asking, [
      { type: "shell_call", id: "sh_1", call_id: "call_1" },
      { type: "shell_call_output", id: "sh_2", call_id: "call_1" },
      { type: "tool_search_call", id: "ts_1", call_id: null, execution: "server" },
      { type: "tool_search_output", id: "ts_2", call_id: null, execution: "server" },
    ]);
    expect(await admit(database, { previous_response_id: asking.id })).toMatchObject({
      status: "admitted",
    });
  });

  test("[9] a call id of whatever characters does not lock its conversation", async () => {
    const { database } = open;
    for (const callId of ["call 1/2+3=", "\0\ud800", "x".repeat(maxCallIdChars)]) {
      const asking = await admit(database);
      await answer(database, asking, [functionCall(callId)]);
      const output = { type: "function_call_output", call_id: callId, output: "1" };
      const next = { previous_response_id: asking.id, input: [output] };
      expect((await admit(database, next)).status).toBe("admitted");
    }
  });

  test.each(["", 7, null, "x".repeat(maxCallIdChars + 1)])("refuses %j as a call id", (call_id) => {
    const output = { type: "function_call_output", call_id, output: "1" };
    expect(() => admission({ input: [output] })).toThrow(/call_id/);
  });

  describe("after a previous response", () => {
    test("goes on in its conversation while it is the head", async () => {
      const { database } = open;
      const first = await admit(database);
      await answer(database, first);
      const second = await admit(database, { previous_response_id: first.id });
      expect(second.conversationId).toBe(first.conversationId);
      await expect(admit(database, { previous_response_id: first.id })).rejects.toMatchObject({
        code: "conversation_busy",
      });
    });

    test("forks where it is not the head: the fork shares the items up to there", async () => {
      const { database } = open;
      const first = await admit(database, { input: "One" });
      await answer(database, first, [message("1")]);
      const second = await admit(database, { input: "Two", previous_response_id: first.id });
      await answer(database, second, [message("2")]);
      const fork = await admit(database, { input: "Other", previous_response_id: first.id });
      expect(fork.conversationId).not.toBe(first.conversationId);
      await answer(database, fork, [message("3")]);
      const nested = await admit(database, { input: "Deeper", previous_response_id: fork.id });
      expect(nested.conversationId).toBe(fork.conversationId);
      const texts = async (turn: Turn) =>
        outputText(await readHistory(database, "default", turn.conversationId));
      expect(await texts(second)).toBe("12");
      expect(await texts(fork)).toBe("13");
      await deleteConversation(database, "default", second.conversationId);
      expect(await texts(fork)).toBe("13");
    });

    test("a fork waits for the calls that its base waited for", async () => {
      const { database } = open;
      const asking = await admit(database);
      await answer(database, asking, [functionCall("call_1")]);
      const output = { type: "function_call_output", call_id: "call_1", output: "1" };
      const next = { previous_response_id: asking.id };
      await answer(database, await admit(database, { ...next, input: [output] }));
      await expect(admit(database, next)).rejects.toMatchObject({ code: "unanswered_calls" });
      const fork = await admit(database, { ...next, input: [output] });
      expect(fork.conversationId).not.toBe(asking.conversationId);
    });
  });
});

describeOnPostgres("admissions at the same time", (open) => {
  const many = 20;
  const together = <Result>(work: (at: number) => Promise<Result>) =>
    Promise.all(Array.from({ length: many }, (_, at) => work(at)));

  test.each(["reject", "queue"] as const)(
    "[4] with one key are one turn, in a new conversation and in a named one (%s)",
    async (whenBusy) => {
      const { database } = open;
      const { id: conversation } = await newConversation(database);
      const previous = await admit(database);
      await answer(database, previous);
      const requests = [{}, { conversation }, { previous_response_id: previous.id }];
      for (const [at, request] of requests.entries()) {
        const ask = admission(request, { idempotencyKey: `key-${whenBusy}-${at}`, whenBusy });
        const admitted = await together((sender) =>
          admitTurn(database, { ...ask, turnId: `${ask.turnId}_${sender}` }),
        );
        expect(new Set(admitted.map(({ turn }) => turn.id)).size).toBe(1);
        expect(admitted.filter(({ isNew }) => isNew)).toHaveLength(1);
        expect(admitted[0]?.turn.status).toBe("admitted");
      }
    },
  );

  test("[4] with one key and different requests: one is taken, the others get a clear error", async () => {
    const { database } = open;
    const outcomes = await together((at) =>
      admit(database, { input: `Question ${at}` }, { idempotencyKey: "contested" }).then(
        () => "taken",
        (error: { code: string }) => error.code,
      ),
    );
    expect(outcomes.filter((outcome) => outcome === "taken")).toHaveLength(1);
    expect(outcomes.filter((outcome) => outcome === "idempotency_key_reused")).toHaveLength(19);
  });

  test("[2] to one conversation: one holds it, the others are granted in the order of the queue", async () => {
    const { database } = open;
    const { id: conversation } = await newConversation(database);
    const admitted = await together((at) =>
      admit(database, { conversation, input: `${at}` }, { whenBusy: "queue" }),
    );
    const first = admitted.filter((turn) => turn.status === "admitted");
    expect(first).toHaveLength(1);
    const queue = await database.query<{ id: string }>(
      "SELECT id FROM turns WHERE conversation_id = $1 AND status = 'queued' ORDER BY queue_position",
      [conversation],
    );
    const granted: string[] = [];
    for (let turn = first[0]; turn !== undefined;) {
      expect(await holderOf(database, conversation)).toBe(turn.id);
      const ended = await answer(database, turn);
      const next = ended.granted;
      if (next !== null) granted.push(next);
      turn = next === null ? undefined : await reread(database, { id: next });
    }
    expect(granted).toEqual(queue.map((row) => row.id));
    expect(await holderOf(database, conversation)).toBeNull();
  });

  test("[2] to one conversation, all rejecting: one holds it, nineteen are told so", async () => {
    const { database } = open;
    const { id: conversation } = await newConversation(database);
    const outcomes = await together(() =>
      admit(database, { conversation }).then(
        () => "taken",
        (error: { code: string }) => error.code,
      ),
    );
    expect(outcomes.toSorted()).toEqual([
      ...Array.from({ length: many - 1 }, () => "conversation_busy"),
      "taken",
    ]);
  });

  test("[2] after one previous response: one goes on there, the others are told that it is busy", async () => {
    const { database } = open;
    const previous = await admit(database);
    await answer(database, previous);
    const outcomes = await together(() =>
      admit(database, { previous_response_id: previous.id }).then(
        (turn) => turn.conversationId,
        (error: { code: string }) => error.code,
      ),
    );
    expect(outcomes.filter((outcome) => outcome === previous.conversationId)).toHaveLength(1);
    expect(outcomes.filter((outcome) => outcome === "conversation_busy")).toHaveLength(19);
  });
});
