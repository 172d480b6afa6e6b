import type { Turn } from "../turn/turn.ts";
import type { Queryable } from "./database.ts";
import { turnColumns, turnFromRow } from "./turns.ts";
import type { TurnRow } from "./turns.ts";

/** Notes that the connection of the request that started a turn broke before it was answered. */
export async function markDisconnected(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<void> {
  await queryable.query(
    "UPDATE turns SET disconnected_at = now() WHERE id = $1 AND project_id = $2",
    [turnId, project],
  );
}

/**
 * The turn that the same request started before its connection broke, at most `withinMs` ago; `null`
 * where there is none. A turn is given out once for each broken connection that a gateway noted. A
 * gateway that was killed noted nothing, so a turn that goes on is given out once without a note, as
 * long as it is not older than `withinMs`.
 */
export async function reattachTurn(
  queryable: Queryable,
  request: {
    project: string;
    apiKeyId: string | null;
    requestHash: Buffer;
    withinMs: number;
    /** Older turns are not looked at: it keeps a request that comes all day from reading them all. */
    maxAgeMs: number;
  },
): Promise<Turn | null> {
  const [row] = await queryable.query<TurnRow>(
    `UPDATE turns SET disconnected_at = NULL, reattached_at = now()
     WHERE id = (
       SELECT id FROM turns
       WHERE project_id = $1 AND request_hash = $2 AND api_key_id IS NOT DISTINCT FROM $3
         AND created_at > now() - make_interval(secs => $5::float8 / 1000)
         AND idempotency_key IS NULL AND hidden_at IS NULL
         AND (disconnected_at > now() - make_interval(secs => $4::float8 / 1000)
           OR (created_at > now() - make_interval(secs => $4::float8 / 1000)
             AND status IN ('queued', 'admitted', 'running') AND reattached_at IS NULL))
       ORDER BY disconnected_at IS NULL, created_at DESC LIMIT 1
       FOR UPDATE
     )
     RETURNING ${turnColumns}`,
    [request.project, request.requestHash, request.apiKeyId, request.withinMs, request.maxAgeMs],
  );
  return row === undefined ? null : turnFromRow(row);
}

/**
 * Sets the time at which a turn is cancelled because everybody who followed it has gone. It comes by
 * the record, so that it comes without the process that noted it.
 */
export async function setCancelTime(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<void> {
  await queryable.query(
    `UPDATE turns SET cancel_at = now() + make_interval(secs => disconnect_grace_ms::float8 / 1000)
     WHERE id = $1 AND project_id = $2 AND status IN ('queued', 'admitted', 'running')`,
    [turnId, project],
  );
}

/** Takes that time back of turns that somebody follows. */
export async function clearCancelTimes(
  queryable: Queryable,
  turnIds: readonly string[],
): Promise<void> {
  await queryable.query(
    `UPDATE turns SET cancel_at = NULL
     WHERE id IN (
       SELECT id FROM turns WHERE id = ANY($1) AND cancel_at IS NOT NULL ORDER BY id FOR NO KEY UPDATE)
       AND status IN ('queued', 'admitted', 'running')`,
    [turnIds],
  );
}
