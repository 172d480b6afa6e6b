import { Refusal } from "../turn/failures.ts";
import { newId } from "../turn/ids.ts";
import type { Item } from "../turn/items.ts";
import { callKey, callOf, unansweredCalls } from "../turn/pairs.ts";
import type { CallRef } from "../turn/pairs.ts";
import { checkWrittenAnswers } from "../turn/pendingCalls.ts";
import { one } from "./database.ts";
import type { Database, Queryable } from "./database.ts";

export interface Conversation {
  id: string;
  metadata: Record<string, string>;
  createdAt: Date;
}

/**
 * The stretches of the log that make a conversation: its own items, and those of its bases up to
 * where each fork left them. `$1` is the conversation, `$2` the project.
 */
const lineSql = `
WITH RECURSIVE line (conversation_id, base_conversation_id, base_position, upto) AS (
  SELECT id, base_conversation_id, base_position, next_position FROM conversations
  WHERE id = $1 AND project_id = $2
  UNION ALL
  SELECT base.id, base.base_conversation_id, base.base_position, least(line.upto, line.base_position)
  FROM line JOIN conversations AS base ON base.id = line.base_conversation_id
)`;

const itemsSql = `${lineSql}
SELECT items.body, items.position FROM line
JOIN items ON items.conversation_id = line.conversation_id AND items.position < line.upto
WHERE items.deleted_at IS NULL`;

interface ItemRow {
  body: string;
  position: number;
}

/** Everything on record in a conversation, oldest first: what a turn builds its context from. */
export async function readHistory(
  queryable: Queryable,
  project: string,
  conversationId: string,
): Promise<Item[]> {
  const rows = await queryable.query<ItemRow>(`${itemsSql} ORDER BY items.position`, [
    conversationId,
    project,
  ]);
  return rows.map((row) => JSON.parse(row.body) as Item);
}

/** @throws Refusal `unknown_call`. */
export async function createConversation(
  database: Database,
  project: string,
  metadata: Record<string, string>,
  items: readonly Item[],
): Promise<Conversation> {
  checkWrittenAnswers([], items);
  const id = newId("conversation");
  return database.transaction(async (tx) => {
    const row = await one(
      tx.query<{ created_at: Date }>(
        `INSERT INTO conversations (id, project_id, metadata, pending_calls)
         VALUES ($1, $2, $3, $4) RETURNING created_at`,
        [id, project, JSON.stringify(metadata), JSON.stringify(unansweredCalls(items))],
      ),
    );
    if (items.length > 0) await writeItems(tx, project, id, items);
    return { id, metadata, createdAt: row.created_at };
  });
}

export async function readConversation(
  queryable: Queryable,
  project: string,
  id: string,
): Promise<Conversation | null> {
  const [row] = await queryable.query<{ metadata: string; created_at: Date }>(
    `SELECT metadata, created_at FROM conversations
     WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL`,
    [id, project],
  );
  if (row === undefined) return null;
  return {
    id,
    metadata: JSON.parse(row.metadata) as Record<string, string>,
    createdAt: row.created_at,
  };
}

/** Replaces the metadata; `null` where there is no such conversation. */
export async function updateConversation(
  queryable: Queryable,
  project: string,
  id: string,
  metadata: Record<string, string>,
): Promise<Conversation | null> {
  const [row] = await queryable.query<{ created_at: Date }>(
    `UPDATE conversations SET metadata = $3
     WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL RETURNING created_at`,
    [id, project, JSON.stringify(metadata)],
  );
  return row === undefined ? null : { id, metadata, createdAt: row.created_at };
}

/**
 * Hides a conversation. Forks of it keep their items.
 *
 * @throws Refusal `conversation_not_found`, or `conversation_busy` while a turn holds it.
 */
export async function deleteConversation(
  database: Database,
  project: string,
  id: string,
): Promise<void> {
  await database.transaction(async (tx) => {
    await lockIdle(tx, project, id);
    await tx.query("UPDATE conversations SET deleted_at = now() WHERE id = $1", [id]);
  });
}

/** Locks a conversation that no turn holds: items are not written from outside while one does. */
async function lockIdle(
  tx: Queryable,
  project: string,
  id: string,
): Promise<{ pending_calls: string }> {
  const [row] = await tx.query<{ holder_turn_id: string | null; pending_calls: string }>(
    `SELECT holder_turn_id, pending_calls FROM conversations
     WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL FOR UPDATE`,
    [id, project],
  );
  if (row === undefined) {
    throw new Refusal("conversation_not_found", `Conversation '${id}' not found.`, "conversation");
  }
  if (row.holder_turn_id !== null) {
    throw new Refusal(
      "conversation_busy",
      `A response is running in this conversation: ${row.holder_turn_id}. Wait for its end or cancel it.`,
      "conversation",
    );
  }
  return row;
}

async function writeItems(
  tx: Queryable,
  project: string,
  conversationId: string,
  items: readonly Item[],
): Promise<void> {
  await tx.query(
    `WITH conversation AS (
       UPDATE conversations SET next_position = next_position + cardinality($3::text[])
       WHERE id = $1 RETURNING next_position - cardinality($3::text[]) AS first
     )
     INSERT INTO items (conversation_id, position, project_id, id, body)
     SELECT $1, conversation.first + number - 1, $2, item.id, item.body
     FROM conversation, unnest($3::text[], $4::text[]) WITH ORDINALITY AS item (id, body, number)`,
    [
      conversationId,
      project,
      items.map((item) => item.id),
      items.map((item) => JSON.stringify(item)),
    ],
  );
}

/**
 * Appends items to a conversation that no turn holds.
 *
 * @throws Refusal `conversation_not_found`, `conversation_busy` or `unknown_call`.
 */
export async function addItems(
  database: Database,
  project: string,
  conversationId: string,
  items: readonly Item[],
): Promise<void> {
  await database.transaction(async (tx) => {
    const row = await lockIdle(tx, project, conversationId);
    const before = JSON.parse(row.pending_calls) as CallRef[];
    checkWrittenAnswers(before, items);
    await writeItems(tx, project, conversationId, items);
    const pending = unansweredCalls(items, before);
    await tx.query("UPDATE conversations SET pending_calls = $2 WHERE id = $1", [
      conversationId,
      JSON.stringify(pending),
    ]);
  });
}

export interface ItemPage {
  /** Item id of the last item of the page before. */
  after?: string | undefined;
  order: "asc" | "desc";
  limit: number;
}

/** A page of a conversation's items. */
export async function listItems(
  queryable: Queryable,
  project: string,
  conversationId: string,
  page: ItemPage,
): Promise<Item[]> {
  const { order } = page;
  const after = page.after
    ? (await findItem(queryable, project, conversationId, page.after, order)).position
    : null;
  const [comparison, direction] = order === "asc" ? [">", "ASC"] : ["<", "DESC"];
  const rows = await queryable.query<ItemRow>(
    `${itemsSql} AND ($3::bigint IS NULL OR items.position ${comparison} $3)
     ORDER BY items.position ${direction} LIMIT $4`,
    [conversationId, project, after, page.limit],
  );
  return rows.map((row) => JSON.parse(row.body) as Item);
}

/** Of items that were sent twice under one id, the last one in the order of reading. */
async function findItem(
  queryable: Queryable,
  project: string,
  conversationId: string,
  itemId: string,
  order: ItemPage["order"] = "asc",
): Promise<ItemRow> {
  const [row] = await queryable.query<ItemRow>(
    `${itemsSql} AND items.id = $3
     ORDER BY items.position ${order === "asc" ? "DESC" : "ASC"} LIMIT 1`,
    [conversationId, project, itemId],
  );
  if (row !== undefined) return row;
  throw new Refusal("item_not_found", `Item '${itemId}' not found.`, "item_id");
}

/** @throws Refusal `item_not_found`. */
export async function readItem(
  queryable: Queryable,
  project: string,
  conversationId: string,
  itemId: string,
): Promise<Item> {
  const row = await findItem(queryable, project, conversationId, itemId);
  return JSON.parse(row.body) as Item;
}

/**
 * Hides one item of a conversation that no turn holds.
 *
 * @throws Refusal `conversation_not_found`, `conversation_busy` or `item_not_found`.
 */
export async function deleteItem(
  database: Database,
  project: string,
  conversationId: string,
  itemId: string,
): Promise<void> {
  await database.transaction(async (tx) => {
    await lockIdle(tx, project, conversationId);
    const { position, body } = await findItem(tx, project, conversationId, itemId);
    // A fork hides only what is its own: shared items belong to its base.
    const rows = await tx.query(
      `UPDATE items SET deleted_at = now()
       WHERE conversation_id = $1 AND project_id = $2 AND position = $3 RETURNING id`,
      [conversationId, project, position],
    );
    if (rows.length > 0) return forgetPendingCall(tx, conversationId, JSON.parse(body) as Item);
    throw new Refusal(
      "item_not_found",
      `Item '${itemId}' belongs to the conversation that this one was forked from.`,
      "item_id",
    );
  });
}

/** A call that is gone needs no answer. */
async function forgetPendingCall(
  tx: Queryable,
  conversationId: string,
  deleted: Item,
): Promise<void> {
  const gone = callOf(deleted);
  if (gone === null) return;
  const row = await one(
    tx.query<{ pending_calls: string }>("SELECT pending_calls FROM conversations WHERE id = $1", [
      conversationId,
    ]),
  );
  const pending = JSON.parse(row.pending_calls) as CallRef[];
  await tx.query("UPDATE conversations SET pending_calls = $2 WHERE id = $1", [
    conversationId,
    JSON.stringify(pending.filter((call) => callKey(call) !== callKey(gone))),
  ]);
}
