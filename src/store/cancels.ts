import { isTerminal } from "../turn/turn.ts";
import { turnEnd } from "../turn/verdict.ts";
import type { TurnEnd } from "../turn/verdict.ts";
import type { Database, Queryable, Transaction } from "./database.ts";
import { endInside, lockTurn } from "./endings.ts";
import type { Aftermath } from "./endings.ts";
import { isAtWork } from "./steps.ts";

export type CancelOutcome =
  | (TurnEnd & Aftermath & { outcome: "ended" })
  /** A worker or the workflow will end it. */
  | { outcome: "requested" };

/**
 * Asks for a turn's end [12]. A turn that nobody is at, because it was not claimed, is between two
 * steps or waits for its next attempt, ends at once; for others the flag is set, which claims, flushes
 * and the owning worker read.
 */
export function cancelTurn(
  database: Database,
  turn: { id: string; conversationId: string },
): Promise<CancelOutcome> {
  return database.transaction((tx) => cancelInside(tx, turn));
}

/** {@link cancelTurn} as a part of a transaction, which has locked the conversation or nothing. */
export async function cancelInside(
  tx: Transaction,
  turn: { id: string; conversationId: string },
): Promise<CancelOutcome> {
  const before = await lockTurn(tx, turn.id, turn.conversationId);
  if (before === undefined) return { outcome: "requested" };
  if (isTerminal(before.status)) {
    const end = turnEnd(before.status, before.failure);
    return { outcome: "ended", ...end, turns: [], granted: null, abandoned: [] };
  }
  // Nobody can claim a step meanwhile: the turn's row is locked.
  if (!(await isAtWork(tx, turn.id))) {
    const ended = await endInside(tx, turn.id, turn.conversationId, { status: "cancelled" }, {});
    if (ended.outcome === "ended") return ended;
  }
  tx.send(
    "UPDATE turns SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = $1",
    [turn.id],
  );
  return { outcome: "requested" };
}

/**
 * Of these turns, whose steps run in one worker, the ones whose steps have to stop: a cancel was
 * asked for, everybody who followed the turn has been gone for too long, or it has ended.
 */
export async function findTurnsToStop(
  queryable: Queryable,
  turnIds: readonly string[],
): Promise<string[]> {
  const rows = await queryable.query<{ id: string }>(
    `WITH due AS (
       UPDATE turns SET cancel_requested_at = now()
       WHERE id IN (
         SELECT id FROM turns
         WHERE id = ANY($1) AND status IN ('admitted', 'running')
           AND cancel_at <= now() AND cancel_requested_at IS NULL
         ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
       RETURNING id
     )
     SELECT id FROM due
     UNION
     SELECT id FROM turns
     WHERE id = ANY($1) AND (cancel_requested_at IS NOT NULL
       OR status NOT IN ('queued', 'admitted', 'running'))`,
    [turnIds],
  );
  return rows.map((row) => row.id);
}
