import type { Channel, Queryable } from "./database.ts";

/** A worker that has not been seen for this long is left out. */
const workerStaleMs = 3_000;

/** The channel on which a worker is offered turns: the payload is a turn id. */
export function offerChannel(workerId: string): Channel {
  return `turnkeeper_worker_${workerId}`;
}

/** Says that a worker lives, and whether it can take more turns; forgets those that are long gone. */
export async function markWorker(
  queryable: Queryable,
  worker: { id: string; taskQueue: string; hasRoom: boolean },
): Promise<void> {
  await queryable.query(
    `WITH gone AS (DELETE FROM workers WHERE seen_at < now() - interval '1 hour')
     INSERT INTO workers (id, task_queue, has_room, seen_at) VALUES ($1, $2, $3, now())
     ON CONFLICT (id) DO UPDATE SET has_room = excluded.has_room, seen_at = now()`,
    [worker.id, worker.taskQueue, worker.hasRoom],
  );
}

export async function removeWorker(queryable: Queryable, id: string): Promise<void> {
  await queryable.query("DELETE FROM workers WHERE id = $1", [id]);
}

/** The ids of workers of a task queue that live and can take more turns. */
export async function listWorkersWithRoom(
  queryable: Queryable,
  taskQueue: string,
): Promise<string[]> {
  const rows = await queryable.query<{ id: string }>(
    `SELECT id FROM workers
     WHERE task_queue = $1 AND has_room
       AND seen_at > now() - make_interval(secs => $2::float8 / 1000)`,
    [taskQueue, workerStaleMs],
  );
  return rows.map((row) => row.id);
}
