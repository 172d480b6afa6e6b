import { eventBody, lifecycleEvent } from "../turn/events.ts";
import { Refusal } from "../turn/failures.ts";
import { maxQueuedTurns } from "../turn/limits.ts";
import type { TurnLimits } from "../turn/limits.ts";
import { checkAnswers } from "../turn/pendingCalls.ts";
import type { TurnRequest } from "../turn/request.ts";
import { responseObject } from "../turn/response.ts";
import type { Turn } from "../turn/turn.ts";
import { cancelInside } from "./cancels.ts";
import type { CancelOutcome } from "./cancels.ts";
import { columnText } from "./columnText.ts";
import { one } from "./database.ts";
import type { Database, Queryable, Transaction } from "./database.ts";
import { busy, findPlace } from "./places.ts";
import type { BusyMode, Place } from "./places.ts";
import { turnColumns, turnFromRow } from "./turns.ts";
import type { TurnRow } from "./turns.ts";

export interface Admission {
  turnId: string;
  project: string;
  agent: string;
  agentVersion: string;
  model: string;
  request: TurnRequest;
  /** Hash of what the caller sent, to tell a repetition from another request [4]. */
  requestHash: Buffer;
  idempotencyKey: string | null;
  apiKeyId: string | null;
  limits: TurnLimits;
  whenBusy: BusyMode;
  /** The turn is cancelled this long after everybody who followed it has gone; `null`: never. */
  disconnectGraceMs: number | null;
}

export interface Admitted {
  turn: Turn;
  /** False when the same request had been admitted before. */
  isNew: boolean;
  /** The turn that was cancelled for this one, and what came of it; the caller tells of it. */
  interrupted: Interruption | null;
}

export interface Interruption {
  turnId: string;
  cancelled: CancelOutcome;
}

/** Generous against the API's own limit of 64; costs are added up by it, no more. */
const maxUserChars = 256;

/** How a turn that is not asked for by a request of its own finds its place, and begins. */
export interface AdmissionWay {
  place(tx: Transaction): Promise<Place>;
  begin(tx: Transaction, turn: Turn): Promise<void>;
}

async function findRepetition(queryable: Queryable, admission: Admission): Promise<Turn | null> {
  if (admission.idempotencyKey === null) return null;
  const [row] = await queryable.query<TurnRow & { same: boolean }>(
    `SELECT ${turnColumns}, request_hash = $3 AS same
     FROM turns WHERE project_id = $1 AND idempotency_key = $2`,
    [admission.project, admission.idempotencyKey, admission.requestHash],
  );
  if (row === undefined) return null;
  if (!row.same) {
    throw new Refusal(
      "idempotency_key_reused",
      "This idempotency key was used with another request; use a new key for a new request.",
      "Idempotency-Key",
    );
  }
  return turnFromRow(row);
}

async function checkQueue(tx: Queryable, place: Place, admission: Admission): Promise<void> {
  if (admission.whenBusy === "reject") throw busy(place.holder ?? "");
  const { waiting } = await one(
    tx.query<{ waiting: number }>(
      "SELECT count(*) AS waiting FROM turns WHERE conversation_id = $1 AND status = 'queued'",
      [place.conversationId],
    ),
  );
  if (waiting >= maxQueuedTurns) {
    const problem = `${maxQueuedTurns} turns already wait for this conversation; try again later.`;
    throw new Refusal("queue_full", problem, "conversation");
  }
}

async function insertTurn(
  tx: Queryable,
  admission: Admission,
  place: Place,
): Promise<Turn | undefined> {
  const status = place.holder === null ? "admitted" : "queued";
  const { replay } = place;
  const request =
    replay === undefined || admission.request.conversation === null
      ? admission.request
      : { ...admission.request, conversation: place.conversationId };
  const [row] = await tx.query<TurnRow>(
    `INSERT INTO turns (id, project_id, conversation_id, status, agent, agent_version, model,
       request, request_hash, idempotency_key, api_key_id, limits, deadline_at, user_id, interrupts,
       disconnect_grace_ms, base_position, replay_of, origin_turn_id, replay_effects, is_dry_run,
       hidden_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
       now() + make_interval(secs => $13::float8 / 1000), $14, $15, $16,
       CASE WHEN $4 = 'admitted' THEN (SELECT next_position FROM conversations WHERE id = $3) END,
       $17, $18, $19, $20, CASE WHEN $20 THEN now() END)
     ON CONFLICT (project_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
     RETURNING ${turnColumns}`,
    [
      admission.turnId,
      admission.project,
      place.conversationId,
      status,
      admission.agent,
      admission.agentVersion,
      admission.model,
      JSON.stringify(request),
      admission.requestHash,
      admission.idempotencyKey,
      admission.apiKeyId,
      JSON.stringify(admission.limits),
      admission.limits.maxTurnMs,
      admission.request.user && columnText(admission.request.user, maxUserChars),
      status === "queued" && admission.whenBusy === "interrupt",
      admission.disconnectGraceMs,
      replay?.of ?? null,
      replay?.originId ?? null,
      replay?.effects ?? null,
      replay?.isDryRun ?? false,
    ],
  );
  return row === undefined ? undefined : turnFromRow(row);
}

/** The stream's first events, its head, and the conversation's lock where it is free. */
function openStream(tx: Transaction, turn: Turn): void {
  const created = { type: "response.created", response: responseObject(turn) };
  const events =
    turn.status === "queued" ? [created, lifecycleEvent(responseObject(turn))] : [created];
  tx.send(
    `WITH head AS (
       INSERT INTO turn_heads (turn_id, admitted_on, next_sequence_number)
       VALUES ($1, $2, cardinality($3::text[]))
     ), lock AS (
       UPDATE conversations SET holder_turn_id = $1 WHERE id = $4 AND $5
     )
     INSERT INTO turn_events (admitted_on, turn_id, sequence_number, body)
     SELECT $2, $1, number - 1, body FROM unnest($3::text[]) WITH ORDINALITY AS event (body, number)`,
    [
      turn.id,
      turn.admittedOn,
      events.map(eventBody),
      turn.conversationId,
      turn.status === "admitted",
    ],
  );
}

/** SQLSTATE of a foreign key violation (PostgreSQL manual, appendix A). */
const foreignKeyViolation = "23503";

function isUnknownProject(error: unknown): boolean {
  const { code, constraint } = error as { code?: unknown; constraint?: unknown };
  return code === foreignKeyViolation && String(constraint).endsWith("_project_id_fkey");
}

export function unknownProject(project: string): Refusal {
  const advice = "Create a key for it first: turnkeeper key create --project ID.";
  return new Refusal("unknown_project", `There is no project '${project}'. ${advice}`, "project");
}

/**
 * Cancels the turn that holds the conversation for one that was put behind it. Where nobody is at a
 * step of it, it ends here, and the new one, which is granted first, holds the conversation.
 */
async function interrupt(tx: Transaction, turn: Turn, holder: string): Promise<Admitted> {
  const cancelled = await cancelInside(tx, { id: holder, conversationId: turn.conversationId });
  const row = await one(
    tx.query<TurnRow>(`SELECT ${turnColumns} FROM turns WHERE id = $1`, [turn.id]),
  );
  return { turn: turnFromRow(row), isNew: true, interrupted: { turnId: holder, cancelled } };
}

/** A lost race for an idempotency key: undo what this transaction did and read the winner. */
class LostRace extends Error {}

/**
 * Puts a turn on record [1]: the turn, its staged input, its place in the queue and the
 * conversation's lock if it is free [2], in one transaction; with `interrupt`, the cancel of the turn
 * that holds the conversation too.
 *
 * @throws Refusal `unknown_project`, `conversation_busy`, `queue_full`, `conversation_not_found`,
 *   `previous_response_not_found`, `previous_response_unusable`, `unanswered_calls`, `unknown_call`
 *   or `idempotency_key_reused`.
 */
export async function admitTurn(
  database: Database,
  admission: Admission,
  way?: AdmissionWay,
): Promise<Admitted> {
  try {
    return await database.transaction(async (tx) => {
      const before = await findRepetition(tx, admission);
      if (before !== null) return { turn: before, isNew: false, interrupted: null };
      const place = await (way?.place(tx) ?? findPlace(tx, admission));
      // No call goes to the model without its output [9].
      if (place.holder === null) checkAnswers(place.pendingCalls, admission.request);
      else await checkQueue(tx, place, admission);
      const turn = await insertTurn(tx, admission, place);
      if (turn === undefined) throw new LostRace();
      openStream(tx, turn);
      if (place.holder !== null && admission.whenBusy === "interrupt") {
        return await interrupt(tx, turn, place.holder);
      }
      await way?.begin(tx, turn);
      return { turn, isNew: true, interrupted: null };
    });
  } catch (error) {
    if (isUnknownProject(error)) throw unknownProject(admission.project);
    if (!(error instanceof LostRace || error instanceof Refusal)) throw error;
    // The same request may have come twice at once: what refuses one may be the other's turn.
    const winner = await findRepetition(database, admission);
    if (winner === null) throw error;
    return { turn: winner, isNew: false, interrupted: null };
  }
}
