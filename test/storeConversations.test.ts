import fc from "fast-check";
import { expect, test } from "vitest";
import { admitTurn } from "../src/store/admission.ts";
import {
  addItems,
  createConversation,
  deleteConversation,
  deleteItem,
  listItems,
  readConversation,
  readHistory,
  readItem,
  updateConversation,
} from "../src/store/conversations.ts";
import type { Database } from "../src/store/database.ts";
import { markDisconnected, reattachTurn } from "../src/store/disconnects.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { hideTurn, listTurns, readTurn, readVisibleTurn } from "../src/store/turns.ts";
import { contentHash } from "../src/turn/canonical.ts";
import type { Item } from "../src/turn/items.ts";
import { userMessage } from "../src/turn/items.ts";
import { describeOnBoth } from "./setup/storeDrivers.ts";
import {
  addProject,
  admission,
  admit,
  answer,
  functionCall,
  message,
  reread,
} from "./setup/storeTurns.ts";

const project = "default";
const dayMs = 24 * 3_600_000;
const whole = { order: "asc", limit: 1_000 } as const;

function output(callId: string): Item {
  return { type: "function_call_output", id: `fco_${callId}`, call_id: callId, output: "1" };
}

async function pendingOf(database: Database, id: string): Promise<unknown> {
  const [row] = await database.query<{ pending_calls: string }>(
    "SELECT pending_calls FROM conversations WHERE id = $1",
    [id],
  );
  return (JSON.parse(row?.pending_calls ?? "[]") as { id: string }[]).map((call) => call.id);
}

describeOnBoth("conversations", (open) => {
  test("keep metadata and items as they were given, whatever characters they have", async () => {
    const { database } = open;
    const items = [userMessage("NUL \0 and \ud800"), message("Hello")];
    const metadata = { key: "\0\ud800" };
    const { id } = await createConversation(database, project, metadata, items);
    expect(await readConversation(database, project, id)).toMatchObject({ id, metadata });
    expect(await readHistory(database, project, id)).toEqual(items);
    expect(await readItem(database, project, id, items[0]?.id ?? "")).toEqual(items[0]);
    const updated = await updateConversation(database, project, id, { other: "1" });
    expect(updated).toMatchObject({ id, metadata: { other: "1" } });
    expect(await readConversation(database, project, id)).toEqual(updated);
  });

  test("are paged in both orders, over forks too, without losing or repeating an item", async () => {
    const { database } = open;
    const first = await admit(database, { input: "1" });
    await answer(database, first, [message("2"), message("3")]);
    const next = await admit(database, { input: "left", previous_response_id: first.id });
    await answer(database, next);
    const fork = await admit(database, { input: "4", previous_response_id: first.id });
    await answer(database, fork, [message("5"), message("6")]);
    const id = fork.conversationId;
    await deleteItem(
      database,
      project,
      id,
      (await readHistory(database, project, id))[4]?.id ?? "",
    );
    const all = await readHistory(database, project, id);
    expect(all).toHaveLength(5);
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom("asc" as const, "desc" as const),
        fc.integer({ min: 1, max: 6 }),
        async (order, limit) => {
          const read: Item[] = [];
          for (let after: string | undefined; ;) {
            const page = await listItems(database, project, id, { order, limit, after });
            read.push(...page);
            if (page.length < limit) break;
            after = page.at(-1)?.id;
          }
          expect(read).toEqual(order === "asc" ? all : all.toReversed());
        },
      ),
      { numRuns: 12 },
    );
  });

  test("with an item that was sent twice are paged on from either of the two", async () => {
    const { database } = open;
    const twice = userMessage("again");
    const items = [userMessage("a"), twice, userMessage("b"), twice, userMessage("c")];
    const { id } = await createConversation(database, project, {}, items);
    for (const order of ["asc", "desc"] as const) {
      const inOrder = order === "asc" ? items : items.toReversed();
      const page = await listItems(database, project, id, { order, limit: 9, after: twice.id });
      expect(page).toEqual(inOrder.slice(4));
    }
  });

  test("that are not there, or are deleted, or an item that is not there: clear errors", async () => {
    const { database } = open;
    const { id } = await createConversation(database, project, {}, [message("Hello")]);
    const missing = { code: "item_not_found", httpStatus: 404 };
    await expect(readItem(database, project, id, "msg_none")).rejects.toMatchObject(missing);
    await expect(deleteItem(database, project, id, "msg_none")).rejects.toMatchObject(missing);
    await deleteConversation(database, project, id);
    expect(await readConversation(database, project, id)).toBeNull();
    expect(await updateConversation(database, project, id, {})).toBeNull();
    const gone = { code: "conversation_not_found", httpStatus: 404 };
    await expect(deleteConversation(database, project, id)).rejects.toMatchObject(gone);
    await expect(addItems(database, project, id, [])).rejects.toMatchObject(gone);
    await expect(admit(database, { conversation: id })).rejects.toMatchObject(gone);
  });

  test("are not written from outside while a turn holds them", async () => {
    const { database } = open;
    const item = message("Hello");
    const { id } = await createConversation(database, project, {}, [item]);
    const turn = await admit(database, { conversation: id });
    const busy = { code: "conversation_busy", httpStatus: 409 };
    await expect(addItems(database, project, id, [message("x")])).rejects.toMatchObject(busy);
    await expect(deleteItem(database, project, id, item.id)).rejects.toMatchObject(busy);
    await expect(deleteConversation(database, project, id)).rejects.toMatchObject(busy);
    expect(await readHistory(database, project, id)).toEqual([item]);
    await answer(database, turn, []);
    await addItems(database, project, id, [message("x")]);
    expect(await readHistory(database, project, id)).toHaveLength(3);
  });

  test("[9] remember which calls wait for an answer, however the items came", async () => {
    const { database } = open;
    const call = functionCall("c");
    const given = [functionCall("a"), functionCall("b"), output("a")];
    const { id } = await createConversation(database, project, {}, given);
    expect(await pendingOf(database, id)).toEqual(["b"]);
    await addItems(database, project, id, [call, functionCall("d"), output("d")]);
    expect(await pendingOf(database, id)).toEqual(["b", "c"]);
    await addItems(database, project, id, [output("b")]);
    expect(await pendingOf(database, id)).toEqual(["c"]);
    await expect(admit(database, { conversation: id })).rejects.toMatchObject({
      code: "unanswered_calls",
    });
    // A call that is gone needs no answer.
    await deleteItem(database, project, id, call.id);
    expect(await admit(database, { conversation: id })).toMatchObject({ status: "admitted" });
  });

  test("share the items of their base, which a fork cannot delete", async () => {
    const { database } = open;
    const first = await admit(database, { input: "1" });
    const shared = message("2");
    await answer(database, first, [shared]);
    const next = await admit(database, { previous_response_id: first.id });
    await answer(database, next);
    const fork = await admit(database, { previous_response_id: first.id });
    await answer(database, fork);
    const theirs = deleteItem(database, project, fork.conversationId, shared.id);
    await expect(theirs).rejects.toMatchObject({ code: "item_not_found" });
    await addItems(database, project, first.conversationId, [message("later")]);
    await deleteItem(database, project, first.conversationId, shared.id);
    const left = await readHistory(database, project, fork.conversationId);
    expect(left.map((item) => item.id)).not.toContain(shared.id);
    expect(left).toHaveLength(3);
  });
});

describeOnBoth("[14] a project", (open) => {
  test("sees nothing of another one, by whatever id, and changes nothing of it", async () => {
    const { database } = open;
    await addProject(database, "other");
    const item = message("Secret");
    const { id } = await createConversation(database, project, { key: "secret" }, [item]);
    const turn = await admit(database, { conversation: id });
    await answer(database, turn);
    const before = [await reread(database, turn), await readHistory(database, project, id)];
    const theirs = "other";
    expect(await readConversation(database, theirs, id)).toBeNull();
    expect(await updateConversation(database, theirs, id, { key: "changed" })).toBeNull();
    expect(await readHistory(database, theirs, id)).toEqual([]);
    expect(await listItems(database, theirs, id, whole)).toEqual([]);
    expect(await readTurn(database, theirs, turn.id)).toBeNull();
    expect(await readVisibleTurn(database, theirs, turn.id)).toBeNull();
    expect(await readModelCalls(database, theirs, turn.id)).toEqual([]);
    expect(await hideTurn(database, theirs, turn.id)).toBe(false);
    expect(await listTurns(database, theirs, { limit: 10 })).toEqual([]);
    const byTheirCursor = { limit: 10, after: turn.id };
    expect(await listTurns(database, theirs, byTheirCursor)).toEqual([]);
    await expect(readItem(database, theirs, id, item.id)).rejects.toMatchObject({
      code: "item_not_found",
    });
    const notFound = { code: "conversation_not_found" };
    await expect(addItems(database, theirs, id, [item])).rejects.toMatchObject(notFound);
    await expect(deleteItem(database, theirs, id, item.id)).rejects.toMatchObject(notFound);
    await expect(deleteConversation(database, theirs, id)).rejects.toMatchObject(notFound);
    const inTheirs = { project: theirs };
    const named = admit(database, { conversation: id }, inTheirs);
    await expect(named).rejects.toMatchObject(notFound);
    const after = admit(database, { previous_response_id: turn.id }, inTheirs);
    await expect(after).rejects.toMatchObject({ code: "previous_response_not_found" });
    expect([await reread(database, turn), await readHistory(database, project, id)]).toEqual(
      before,
    );
  });

  test("does not get another one's turn for an interrupted request", async () => {
    const { database } = open;
    await addProject(database, "third");
    const ask = admission({ input: "Unique" });
    const { turn } = await admitTurn(database, ask);
    await markDisconnected(database, "third", turn.id);
    const again = {
      requestHash: ask.requestHash,
      apiKeyId: null,
      withinMs: 60_000,
      maxAgeMs: dayMs,
    };
    await answer(database, turn);
    expect(await reattachTurn(database, { ...again, project })).toBeNull();
    await markDisconnected(database, project, turn.id);
    const others = [
      { ...again, project: "third" },
      { ...again, project, apiKeyId: "key_1" },
      { ...again, project, requestHash: contentHash("other") },
      { ...again, project, withinMs: 0 },
    ];
    for (const request of others) expect(await reattachTurn(database, request)).toBeNull();
    // Once for each connection that broke.
    expect(await reattachTurn(database, { ...again, project })).toMatchObject({ id: turn.id });
    expect(await reattachTurn(database, { ...again, project })).toBeNull();
  });

  test("finds an interrupted turn by when its connection broke, however long it had run by then", async () => {
    const { database } = open;
    const ask = admission({ input: "Slow" });
    const { turn } = await admitTurn(database, ask);
    const { requestHash } = ask;
    const again = { project, requestHash, apiKeyId: null, withinMs: 60_000, maxAgeMs: dayMs };
    const makeOlder = "UPDATE turns SET created_at = created_at - interval '65 s' WHERE id = $1";
    await database.query(makeOlder, [turn.id]);
    // That it goes on says nothing any more: a whole connection may wait for it.
    expect(await reattachTurn(database, again)).toBeNull();
    await markDisconnected(database, project, turn.id);
    expect(await reattachTurn(database, { ...again, maxAgeMs: 64_000 })).toBeNull();
    expect(await reattachTurn(database, again)).toMatchObject({ id: turn.id });
    await markDisconnected(database, project, turn.id);
    const makeLate = "UPDATE turns SET disconnected_at = now() - interval '61 s' WHERE id = $1";
    await database.query(makeLate, [turn.id]);
    expect(await reattachTurn(database, again)).toBeNull();
  });

  test("finds the turns of a killed gateway, which noted nothing, each of them once", async () => {
    const { database } = open;
    const asks = [admission({ input: "Killed" }), admission({ input: "Killed" })];
    for (const ask of asks) await admitTurn(database, ask);
    const { requestHash } = admission({ input: "Killed" });
    const again = { project, requestHash, apiKeyId: null, withinMs: 60_000, maxAgeMs: dayMs };
    const found = await Promise.all(asks.map(() => reattachTurn(database, again)));
    expect(new Set(found.map((turn) => turn?.id))).toEqual(new Set(asks.map((ask) => ask.turnId)));
    expect(await reattachTurn(database, again)).toBeNull();
    // Its second connection broke too, and that was noted.
    await markDisconnected(database, project, asks[0]?.turnId ?? "");
    expect(await reattachTurn(database, again)).toMatchObject({ id: asks[0]?.turnId });
  });

  test("lists its turns, newest first, without those that were deleted, page by page", async () => {
    const { database } = open;
    await addProject(database, "lister");
    const mine = { project: "lister" };
    const turns = [];
    for (let at = 0; at < 5; at++) turns.push(await admit(database, {}, mine));
    const newestFirst = turns.map((turn) => turn.id).toReversed();
    const hidden = newestFirst[1] ?? "";
    expect(await hideTurn(database, "lister", hidden)).toBe(true);
    expect(await hideTurn(database, "lister", hidden)).toBe(false);
    expect(await readVisibleTurn(database, "lister", hidden)).toBeNull();
    expect(await readTurn(database, "lister", hidden)).not.toBeNull();
    const read: string[] = [];
    for (let after: string | undefined; ;) {
      const page = await listTurns(database, "lister", { limit: 2, after });
      read.push(...page.map((turn) => turn.id));
      if (page.length < 2) break;
      after = page.at(-1)?.id;
    }
    expect(read).toEqual(newestFirst.filter((id) => id !== hidden));
    const filter = {
      conversationId: turns[0]?.conversationId,
      status: "admitted",
      limit: 9,
    } as const;
    expect(await listTurns(database, "lister", filter)).toHaveLength(1);
    expect(await listTurns(database, "lister", { ...filter, status: "failed" })).toEqual([]);
  });
});
