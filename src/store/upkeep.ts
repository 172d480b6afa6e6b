import { one } from "./database.ts";
import type { Database, Queryable } from "./database.ts";

/** What the janitor has to know of a turn to look after it: none of its bodies. */
export interface UpkeepTurn {
  id: string;
  conversationId: string;
  runId: string | null;
  deadlineAt: Date;
}

interface UpkeepRow {
  id: string;
  conversation_id: string;
  run_id: string | null;
  deadline_at: Date;
}

/**
 * Turns that are older than `ageMs` and not terminal; oldest first, those behind the turn `after`.
 * `queued` ones are not among them: they wait for their conversation.
 */
export function findStaleTurns(
  queryable: Queryable,
  ageMs: number,
  limit: number,
  after: string | null = null,
): Promise<UpkeepTurn[]> {
  const isStale = `status IN ('admitted', 'running')
    AND greatest(created_at, started_at) < now() - make_interval(secs => $3::float8 / 1000)`;
  return readPage(queryable, isStale, [limit, after, ageMs]);
}

/** Turns that have waited for their conversation past their deadline, paged in the same way. */
export function findExpiredQueuedTurns(
  queryable: Queryable,
  limit: number,
  after: string | null = null,
): Promise<UpkeepTurn[]> {
  return readPage(queryable, "status = 'queued' AND deadline_at < now()", [limit, after]);
}

/**
 * Turns that are to be cancelled and that nobody has ended: their followers have gone, or a cancel was
 * asked for more than `ageMs` ago. Paged in the same way.
 */
export function findTurnsToCancel(
  queryable: Queryable,
  ageMs: number,
  limit: number,
  after: string | null = null,
): Promise<UpkeepTurn[]> {
  const isDue = `status IN ('queued', 'admitted', 'running') AND (cancel_at <= now()
    OR cancel_requested_at < now() - make_interval(secs => $3::float8 / 1000))`;
  return readPage(queryable, isDue, [limit, after, ageMs]);
}

/** @param parameters the page's limit, the turn it begins behind, and those of `condition`. */
async function readPage(
  queryable: Queryable,
  condition: string,
  parameters: [limit: number, after: string | null, ...of: number[]],
): Promise<UpkeepTurn[]> {
  const rows = await queryable.query<UpkeepRow>(
    `SELECT id, conversation_id, run_id, deadline_at FROM turns
     WHERE ${condition}
       AND ($2::text IS NULL OR (created_at, id) >
         (SELECT cursor.created_at, cursor.id FROM turns cursor WHERE cursor.id = $2))
     ORDER BY created_at, id LIMIT $1`,
    parameters,
  );
  return rows.map((row) => ({
    id: row.id,
    conversationId: row.conversation_id,
    runId: row.run_id,
    deadlineAt: row.deadline_at,
  }));
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
    await changeUnlessBusy(
      database,
      `CREATE TABLE IF NOT EXISTS ${name} PARTITION OF turn_events
       FOR VALUES FROM ('${day}') TO (date '${day}' + 1)`,
    ).catch(() => {});
  }
}

/** Everybody who reads or writes events waits behind a change of the table that waits itself. */
const lockTimeoutMs = 200;

/** SQLSTATE `lock_not_available` (PostgreSQL manual, appendix A). */
const lockNotAvailable = "55P03";

/** Returns whether it was done; if not, as while a backup reads the table, a later round does it. */
async function changeUnlessBusy(database: Database, sql: string): Promise<boolean> {
  try {
    await database.transaction(async (tx) => {
      tx.send(`SET LOCAL lock_timeout = ${lockTimeoutMs}`);
      await tx.query(sql);
    });
    return true;
  } catch (error) {
    if ((error as { code?: unknown }).code === lockNotAvailable) return false;
    throw error;
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
  const dropped: string[] = [];
  for (const { name } of rows) {
    if (await changeUnlessBusy(database, `DROP TABLE ${name}`)) dropped.push(name);
  }
  return dropped;
}

/**
 * Deletes the events older than `retentionDays` that lie in the default partition, of at most
 * `maxTurns` turns that are terminal. All of a turn's go at once: a stream that lacks only its end
 * would look whole.
 *
 * @returns of how many turns there were events to delete.
 */
export async function deleteOldDefaultEvents(
  database: Database,
  retentionDays: number,
  maxTurns: number,
): Promise<number> {
  const { turns } = await one(
    database.query<{ turns: number }>(
      `WITH old AS MATERIALIZED (
         SELECT DISTINCT event.admitted_on, event.turn_id
         FROM turn_events_default event JOIN turns ON turns.id = event.turn_id
         WHERE event.admitted_on < (now() AT TIME ZONE 'UTC')::date - $1::int
           AND turns.status NOT IN ('queued', 'admitted', 'running')
         LIMIT $2
       ), deleted AS (
         DELETE FROM turn_events_default event USING old
         WHERE event.admitted_on = old.admitted_on AND event.turn_id = old.turn_id
       )
       SELECT count(*) AS turns FROM old`,
      [retentionDays, maxTurns],
    ),
  );
  return turns;
}
