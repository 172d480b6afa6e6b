import { eventBody, parseEvent } from "../turn/events.ts";
import type { RecordedEvent, TurnEvent } from "../turn/events.ts";
import type { TurnStatus } from "../turn/turn.ts";
import { one } from "./database.ts";
import type { Queryable } from "./database.ts";
import type { Fence } from "./fence.ts";

/** What names a turn's events: the partition and the turn. */
export interface EventKey {
  id: string;
  admittedOn: string;
}

/**
 * Appends events in the caller's transaction, which holds what entitles it to [3]. The lock on the
 * head makes numbers visible in order and without gaps [6].
 *
 * @returns the events as they are on record once the transaction has committed.
 */
export async function appendEvents(
  tx: Queryable,
  turn: EventKey,
  events: readonly TurnEvent[],
  nextOutputIndex = 0,
): Promise<RecordedEvent[]> {
  if (events.length === 0 && nextOutputIndex === 0) return [];
  const bodies = events.map(eventBody);
  const [head] = await tx.query<{ first: number }>(
    `WITH head AS (
       UPDATE turn_heads SET next_sequence_number = next_sequence_number + cardinality($3::text[]),
         next_output_index = greatest(next_output_index, $4)
       WHERE turn_id = $1
       RETURNING next_sequence_number - cardinality($3::text[]) AS first
     ), written AS (
       INSERT INTO turn_events (admitted_on, turn_id, sequence_number, body)
       SELECT $2, $1, head.first + number - 1, body
       FROM head, unnest($3::text[]) WITH ORDINALITY AS event (body, number)
     )
     SELECT first FROM head`,
    [turn.id, turn.admittedOn, bodies, nextOutputIndex],
  );
  const first = head?.first ?? 0;
  return bodies.map((body, at) => ({ sequenceNumber: first + at, body }));
}

interface EventRow {
  turn_id: string;
  sequence_number: number;
  body: string;
}

/** All events of a turn, parsed, for whoever has to derive its state from the record. */
export async function readAllEvents(queryable: Queryable, turn: EventKey): Promise<TurnEvent[]> {
  const rows = await queryable.query<EventRow>(
    `SELECT turn_id, sequence_number, body FROM turn_events
     WHERE admitted_on = $1 AND turn_id = $2 ORDER BY sequence_number`,
    [turn.admittedOn, turn.id],
  );
  return rows.map((row) => parseEvent({ sequenceNumber: row.sequence_number, body: row.body }));
}

/** Ids and call ids of all items that a turn's stream has announced, abandoned ones among them. */
export async function readShownIds(queryable: Queryable, turn: EventKey): Promise<string[]> {
  const rows = await queryable.query<{ body: string }>(
    `SELECT body FROM turn_events
     WHERE admitted_on = $1 AND turn_id = $2 AND starts_with(body, $3)`,
    [turn.admittedOn, turn.id, '{"type":"response.output_item.added"'],
  );
  return rows.flatMap(({ body }) => {
    const { item } = JSON.parse(body) as { item: { id?: unknown; call_id?: unknown } };
    return [item.id, item.call_id].filter((id) => typeof id === "string");
  });
}

/** A turn's status and the number of its last event, read together. */
export async function readProgress(
  queryable: Queryable,
  turnId: string,
): Promise<{ status: TurnStatus; lastNumber: number }> {
  const row = await one(
    queryable.query<{ status: TurnStatus; next_sequence_number: number }>(
      `SELECT turns.status, turn_heads.next_sequence_number
       FROM turns JOIN turn_heads ON turn_heads.turn_id = turns.id WHERE turns.id = $1`,
      [turnId],
    ),
  );
  return { status: row.status, lastNumber: row.next_sequence_number - 1 };
}

export interface EventCursor extends EventKey {
  /** The last number that was seen; -1 for none. */
  after: number;
}

/** Events after each cursor, at most `limitPerTurn` of each, in one statement for all turns. */
export async function readEventsAfter(
  queryable: Queryable,
  cursors: readonly EventCursor[],
  limitPerTurn: number,
): Promise<Map<string, RecordedEvent[]>> {
  const rows = await queryable.query<EventRow>(
    `SELECT event.turn_id, event.sequence_number, event.body
     FROM unnest($1::date[], $2::text[], $3::bigint[]) AS watched (admitted_on, turn_id, after)
     CROSS JOIN LATERAL (
       SELECT turn_id, sequence_number, body FROM turn_events
       WHERE admitted_on = watched.admitted_on AND turn_id = watched.turn_id
         AND sequence_number > watched.after
       ORDER BY sequence_number LIMIT $4
     ) AS event
     ORDER BY event.turn_id, event.sequence_number`,
    [
      cursors.map((cursor) => cursor.admittedOn),
      cursors.map((cursor) => cursor.id),
      cursors.map((cursor) => cursor.after),
      limitPerTurn,
    ],
  );
  const events = new Map<string, RecordedEvent[]>();
  for (const row of rows) {
    const list = events.get(row.turn_id) ?? [];
    list.push({ sequenceNumber: row.sequence_number, body: row.body });
    events.set(row.turn_id, list);
  }
  return events;
}

/** One step's part of a flush. */
export interface FlushEntry extends Fence {
  /** Counts the writes of this attempt from 1; makes a resent write recognisable. */
  flush: number;
  bodies: readonly string[];
  nextOutputIndex: number;
  /** How far these events go in a response that the provider keeps. */
  place: ResponsePlace | null;
}

/** A place in the provider's stream of a response. */
export interface ResponsePlace {
  responseId: string;
  /** The provider's number of the last event; `null`: it gives none. */
  cursor: number | null;
}

/**
 * `stored`: on record, now or by an earlier send; `first` is the number of the first event if it
 * was stored now. `locked`: somebody holds the step's row; send it again. `fenced`: the writer has
 * been replaced.
 */
export interface FlushOutcome {
  state: "stored" | "locked" | "fenced";
  first: number | null;
  cancelRequested: boolean;
}

const flushSql = `
WITH incoming AS (
  SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::int[], $5::int[], $6::int[],
      $7::int[], $8::text[], $9::bigint[])
    AS entry (turn_id, step, run_id, attempt, flush, size, next_output_index, response_id, cursor)
), held AS (
  SELECT steps.turn_id, steps.number, incoming.flush, incoming.size, incoming.next_output_index,
    incoming.response_id, incoming.cursor, steps.flushed,
    steps.state = 'running' AND steps.run_id = incoming.run_id AND steps.attempt = incoming.attempt AS mine
  FROM steps JOIN incoming ON steps.turn_id = incoming.turn_id AND steps.number = incoming.step
  ORDER BY steps.turn_id, steps.number
  FOR UPDATE OF steps SKIP LOCKED
), fenced AS (
  UPDATE steps SET flushed = held.flush,
    response_id = coalesce(held.response_id, steps.response_id),
    cursor = coalesce(held.cursor, steps.cursor)
  FROM held
  WHERE steps.turn_id = held.turn_id AND steps.number = held.number
    AND held.mine AND steps.flushed = held.flush - 1
  RETURNING steps.turn_id, steps.number, held.size, held.next_output_index
), heads AS (
  SELECT turn_heads.turn_id, total.size, total.next_output_index
  FROM turn_heads JOIN (
    SELECT turn_id, sum(size)::int AS size, max(next_output_index) AS next_output_index
    FROM fenced GROUP BY turn_id
  ) AS total ON total.turn_id = turn_heads.turn_id
  ORDER BY turn_heads.turn_id
  FOR UPDATE OF turn_heads
), numbered AS (
  UPDATE turn_heads SET next_sequence_number = next_sequence_number + heads.size,
    next_output_index = greatest(turn_heads.next_output_index, heads.next_output_index)
  FROM heads WHERE turn_heads.turn_id = heads.turn_id
  RETURNING turn_heads.turn_id, turn_heads.admitted_on, next_sequence_number - heads.size AS first
), bodies AS (
  SELECT body.turn_id, body.step, body.body, numbered.admitted_on,
    numbered.first + row_number() OVER (PARTITION BY body.turn_id ORDER BY body.place) - 1 AS sequence_number
  FROM unnest($10::text[], $11::int[], $12::text[]) WITH ORDINALITY AS body (turn_id, step, body, place)
  JOIN fenced ON fenced.turn_id = body.turn_id AND fenced.number = body.step
  JOIN numbered ON numbered.turn_id = body.turn_id
), written AS (
  INSERT INTO turn_events (admitted_on, turn_id, sequence_number, body)
  SELECT admitted_on, turn_id, sequence_number, body FROM bodies
)
SELECT incoming.turn_id, incoming.step, held.turn_id IS NULL AS locked,
  fenced.turn_id IS NOT NULL AS stored, coalesce(held.mine AND held.flushed >= incoming.flush, false) AS known,
  (SELECT min(sequence_number) FROM bodies
   WHERE bodies.turn_id = incoming.turn_id AND bodies.step = incoming.step) AS first,
  turns.cancel_requested_at IS NOT NULL AS cancel_requested
FROM incoming
JOIN turns ON turns.id = incoming.turn_id
LEFT JOIN held ON held.turn_id = incoming.turn_id AND held.number = incoming.step
LEFT JOIN fenced ON fenced.turn_id = incoming.turn_id AND fenced.number = incoming.step`;

interface FlushRow {
  turn_id: string;
  step: number;
  locked: boolean;
  stored: boolean;
  known: boolean;
  first: number | null;
  cancel_requested: boolean;
}

/**
 * Stores events of many steps in one statement, each under its own fence [3]. A step appears at
 * most once.
 *
 * @returns the outcomes in the order of `entries`.
 */
export async function flushEvents(
  queryable: Queryable,
  entries: readonly FlushEntry[],
): Promise<FlushOutcome[]> {
  const lines = entries.flatMap((entry) => entry.bodies.map((body) => ({ entry, body })));
  const rows = await queryable.query<FlushRow>(flushSql, [
    entries.map((entry) => entry.turnId),
    entries.map((entry) => entry.step),
    entries.map((entry) => entry.runId),
    entries.map((entry) => entry.attempt),
    entries.map((entry) => entry.flush),
    entries.map((entry) => entry.bodies.length),
    entries.map((entry) => entry.nextOutputIndex),
    entries.map((entry) => entry.place?.responseId ?? null),
    entries.map((entry) => entry.place?.cursor ?? null),
    lines.map((line) => line.entry.turnId),
    lines.map((line) => line.entry.step),
    lines.map((line) => line.body),
  ]);
  const byStep = new Map(rows.map((row) => [`${row.turn_id}/${row.step}`, row]));
  return entries.map((entry) => {
    const row = byStep.get(`${entry.turnId}/${entry.step}`);
    if (row === undefined) return { state: "fenced", first: null, cancelRequested: false };
    const state = row.locked ? "locked" : row.stored || row.known ? "stored" : "fenced";
    return { state, first: row.first, cancelRequested: row.cancel_requested };
  });
}
