import { one } from "../src/store/database.ts";
import type { Database } from "../src/store/database.ts";
import type { Item } from "../src/turn/items.ts";

/** What a turn has of its conversation's log. */
export interface TurnPlace {
  turnId: string;
  conversationId: string;
  /** Where the conversation stood when the turn got hold of it. */
  base: number | null;
  /** Behind the turn's items; `null`: it has left none. */
  end: number | null;
  /** How many items the conversation has of its own, all turns' together. */
  conversationItems: number;
}

export function readPlace(database: Database, turnId: string): Promise<TurnPlace> {
  return one(
    database.query<TurnPlace>(
      `SELECT id AS "turnId", conversation_id AS "conversationId", base_position AS base,
         end_position AS end, (SELECT count(*) FROM items
           WHERE items.conversation_id = turns.conversation_id) AS "conversationItems"
       FROM turns WHERE id = $1`,
      [turnId],
    ),
  );
}

/** What a turn has left in its conversation. */
export async function readOwnItems(database: Database, turnId: string): Promise<Item[]> {
  const rows = await database.query<{ body: string }>(
    `SELECT items.body FROM turns JOIN items ON items.conversation_id = turns.conversation_id
       AND items.position >= turns.base_position AND items.position < turns.end_position
     WHERE turns.id = $1 ORDER BY items.position`,
    [turnId],
  );
  return rows.map(({ body }) => JSON.parse(body) as Item);
}
