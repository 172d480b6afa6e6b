import type { Database, Queryable } from "./database.ts";
import { turnColumns, turnFromRow } from "./turns.ts";
import type { TurnRow } from "./turns.ts";
import type { Turn } from "../turn/turn.ts";

/**
 * Turns that are older than `ageMs` and not terminal; oldest first, those behind the turn `after`.
 * `queued` ones are not among them: they wait for their conversation.
 */
export async function findStaleTurns(
  queryable: Queryable,
  ageMs: number,
  limit: number,
  after: string | null = null,
): Promise<Turn[]> {
  const rows = await queryable.query<TurnRow>(
    `SELECT ${turnColumns} FROM turns
     WHERE status IN ('admitted', 'running')
       AND greatest(created_at, started_at) < now() - make_interval(secs => $1::float8 / 1000)
       AND ($3::text IS NULL OR (created_at, id) >
         (SELECT cursor.created_at, cursor.id FROM turns cursor WHERE cursor.id = $3))
     ORDER BY created_at, id LIMIT $2`,
    [ageMs, limit, after],
  );
  return rows.map(turnFromRow);
}

/** Turns that have waited for their conversation past their deadline. */
export async function findExpiredQueuedTurns(queryable: Queryable, limit: number): Promise<Turn[]> {
  const rows = await queryable.query<TurnRow>(
    `SELECT ${turnColumns} FROM turns
     WHERE status = 'queued' AND deadline_at < now() ORDER BY deadline_at LIMIT $1`,
    [limit],
  );
  return rows.map(turnFromRow);
}

/**
 * Runs `work` unless another process of the deployment took the lease less than `holdMs` ago.
 * Returns whether it ran.
 */
export async function takeUpkeepTurn(
  database: Database,
  holdMs: number,
  work: () => Promise<void>,
): Promise<boolean> {
  // A lease in a row rather than a held connection: `work` talks to Temporal for a while.
  const rows = await database.query(
    `INSERT INTO leases (id, until) VALUES ($1, now() + make_interval(secs => $2::float8 / 1000))
     ON CONFLICT (id) DO UPDATE SET until = excluded.until WHERE leases.until < now()
     RETURNING id`,
    ["upkeep", holdMs],
  );
  if (rows.length === 0) return false;
  await work();
  return true;
}

interface PartitionRow {
  name: string;
  day: string;
}

/**
 * Makes the partitions of today and the days ahead, so that none of a day's events falls into the
 * default one.
 */
export async function makePartitions(database: Database, daysAhead: number): Promise<void> {
  const rows = await database.query<PartitionRow>(
    `SELECT 'turn_events_' || to_char(day, 'YYYYMMDD') AS name, day::date AS day
     FROM generate_series((now() AT TIME ZONE 'UTC')::date,
       (now() AT TIME ZONE 'UTC')::date + $1::int, interval '1 day') AS day
     WHERE to_regclass('turn_events_' || to_char(day, 'YYYYMMDD')) IS NULL
       AND NOT EXISTS (SELECT FROM turn_events_default WHERE admitted_on = day::date)`,
    [daysAhead],
  );
  for (const { name, day } of rows) {
    // A day whose events lie in the default partition keeps them there; trying would lock them all.
    await database
      .query(
        `CREATE TABLE IF NOT EXISTS ${name} PARTITION OF turn_events
         FOR VALUES FROM ('${day}') TO (date '${day}' + 1)`,
      )
      .catch(() => {});
  }
}

/** Drops the event partitions older than `retentionDays` whose turns are all terminal. */
export async function dropOldPartitions(
  database: Database,
  retentionDays: number,
): Promise<string[]> {
  const rows = await database.query<{ name: string }>(
    `SELECT child.relname AS name
     FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
     WHERE inhparent = 'turn_events'::regclass AND child.relname ~ '^turn_events_[0-9]{8}$'
       AND to_date(right(child.relname, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - $1::int
       AND NOT EXISTS (
         SELECT FROM turns WHERE status IN ('queued', 'admitted', 'running')
           AND admitted_on = to_date(right(child.relname, 8), 'YYYYMMDD'))`,
    [retentionDays],
  );
  for (const { name } of rows) await database.query(`DROP TABLE ${name}`);
  return rows.map((row) => row.name);
}
