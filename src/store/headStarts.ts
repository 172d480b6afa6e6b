import type { Queryable } from "./database.ts";
import type { Fence } from "./fence.ts";

const prefix = "head-start:";

/** A head start whose owner has not been seen for this long is taken over. */
export const headStartStaleMs = 3_000;

/** The run id under which a step is claimed [3] before Temporal has named its run. */
export function headStartRunId(): string {
  return `${prefix}${crypto.randomUUID()}`;
}

export function isHeadStart(runId: string | null): boolean {
  return runId?.startsWith(prefix) ?? false;
}

/**
 * The head start on record, if it has an owner who was seen lately; `null` otherwise. One that has
 * failed is given up in `retryInMs`; 0: it runs.
 */
export async function readHeadStart(
  queryable: Queryable,
  turnId: string,
): Promise<{ retryInMs: number } | null> {
  const [row] = await queryable.query<{ retryInMs: number | null }>(
    `SELECT ceil(extract(epoch FROM retry_at - now()) * 1000)::float8 AS "retryInMs" FROM steps
     WHERE turn_id = $1 AND number = 1 AND state = 'running' AND run_id LIKE $2
       AND seen_at > now() - make_interval(secs => $3::float8 / 1000)`,
    [turnId, `${prefix}%`, headStartStaleMs],
  );
  return row === undefined ? null : { retryInMs: row.retryInMs ?? 0 };
}

/** Says that a head start has failed and is given up after so long. */
export async function postponeHeadStart(
  queryable: Queryable,
  headStart: Fence,
  delayMs: number,
): Promise<void> {
  await queryable.query(
    `UPDATE steps SET retry_at = now() + make_interval(secs => $3::float8 / 1000)
     WHERE turn_id = $1 AND number = 1 AND run_id = $2 AND state = 'running'`,
    [headStart.turnId, headStart.runId, delayMs],
  );
}

/** Says that the owner of these turns' head starts lives. */
export async function markHeadStartsAlive(
  queryable: Queryable,
  turnIds: readonly string[],
): Promise<void> {
  await queryable.query(
    // The time at which it comes through: behind a write that took long it would be old at once.
    `UPDATE steps SET seen_at = clock_timestamp()
     WHERE turn_id = ANY($1) AND number = 1 AND state = 'running' AND run_id LIKE $2`,
    [turnIds, `${prefix}%`],
  );
}

/**
 * Makes the run whose activity joined a head start the one on record, so that its next steps need
 * not ask Temporal which run is current. The step itself stays its owner's.
 */
export async function adoptHeadStart(
  queryable: Queryable,
  headStart: Fence,
  runId: string,
): Promise<void> {
  await queryable.query(
    `UPDATE turns SET run_id = $3
     WHERE id = $1 AND run_id = $2 AND status IN ('admitted', 'running')`,
    [headStart.turnId, headStart.runId, runId],
  );
}

/** Gives up a head start whose step has not been finished. */
export async function abandonHeadStart(queryable: Queryable, headStart: Fence): Promise<void> {
  await queryable.query(
    `UPDATE steps SET state = 'abandoned'
     WHERE turn_id = $1 AND number = 1 AND run_id = $2 AND state = 'running'`,
    [headStart.turnId, headStart.runId],
  );
}
