import type { Failure } from "../turn/failures.ts";
import type { TurnLimits } from "../turn/limits.ts";
import type { ReplayEffects, TurnReplay } from "../turn/replay.ts";
import type { TurnRequest } from "../turn/request.ts";
import type { Degradation, Turn, TurnStatus, Usage } from "../turn/turn.ts";
import type { Queryable } from "./database.ts";

const summaryColumns = `
  turns.id, turns.project_id, turns.conversation_id, turns.status, turns.admitted_on, turns.agent,
  turns.agent_version, turns.model, turns.original_model, turns.degraded, turns.deadline_at,
  turns.run_id, turns.cancel_requested_at, turns.disconnect_grace_ms, turns.usage, turns.failure,
  turns.incomplete_reason, turns.created_at, turns.started_at, turns.ended_at, turns.replay_of,
  turns.origin_turn_id, turns.replay_effects, turns.is_dry_run`;

/** The columns of `turns` that make a {@link Turn}, for a table or alias called `turns`. */
export const turnColumns = `${summaryColumns}, turns.request, turns.limits, turns.output`;

export interface TurnRow {
  id: string;
  project_id: string;
  conversation_id: string;
  status: TurnStatus;
  admitted_on: string;
  agent: string;
  agent_version: string;
  model: string;
  original_model: string | null;
  degraded: Degradation | null;
  request: string;
  limits: string;
  deadline_at: Date;
  run_id: string | null;
  cancel_requested_at: Date | null;
  disconnect_grace_ms: number | null;
  output: string | null;
  usage: string | null;
  failure: string | null;
  incomplete_reason: string | null;
  created_at: Date;
  started_at: Date | null;
  ended_at: Date | null;
  replay_of: string | null;
  origin_turn_id: string | null;
  replay_effects: ReplayEffects | null;
  is_dry_run: boolean;
}

function parse(json: string | null): unknown {
  return json === null ? null : JSON.parse(json);
}

function usageFromRow(row: TurnRow): Usage | null {
  const usage = parse(row.usage) as Usage | null;
  if (usage === null) return null;
  // Turns that ended before these were counted have none.
  const none = { cached_tokens: 0, cache_write_tokens: 0 };
  const counted: Partial<typeof none> = usage.input_tokens_details;
  return { ...usage, input_tokens_details: { ...none, ...counted } };
}

function replayFromRow(row: TurnRow): TurnReplay | null {
  const { replay_of: of, origin_turn_id: originId, replay_effects: effects } = row;
  if (of === null || originId === null || effects === null) return null;
  return { of, originId, effects, isDryRun: row.is_dry_run };
}

function summaryFromRow(row: TurnRow): TurnSummary {
  return {
    id: row.id,
    project: row.project_id,
    conversationId: row.conversation_id,
    status: row.status,
    admittedOn: row.admitted_on,
    agent: row.agent,
    agentVersion: row.agent_version,
    model: row.model,
    originalModel: row.original_model,
    degraded: row.degraded,
    deadlineAt: row.deadline_at,
    runId: row.run_id,
    cancelRequestedAt: row.cancel_requested_at,
    disconnectGraceMs: row.disconnect_grace_ms,
    usage: usageFromRow(row),
    failure: parse(row.failure) as Failure | null,
    incompleteReason: row.incomplete_reason,
    createdAt: row.created_at,
    startedAt: row.started_at,
    endedAt: row.ended_at,
    replay: replayFromRow(row),
  };
}

export function turnFromRow(row: TurnRow): Turn {
  return {
    ...summaryFromRow(row),
    request: JSON.parse(row.request) as TurnRequest,
    // Turns that were admitted before it was a limit have none.
    limits: { lastWordMs: 0, ...(JSON.parse(row.limits) as Omit<TurnLimits, "lastWordMs">) },
    output: parse(row.output) as unknown[] | null,
  };
}

/** The turn of that id in that project, hidden or not; `null` where there is none. */
export async function readTurn(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<Turn | null> {
  const [row] = await queryable.query<TurnRow>(
    `SELECT ${turnColumns} FROM turns WHERE id = $1 AND project_id = $2`,
    [turnId, project],
  );
  return row === undefined ? null : turnFromRow(row);
}

/** Like {@link readTurn}, without turns that were deleted over HTTP. */
export async function readVisibleTurn(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<Turn | null> {
  const [row] = await queryable.query<TurnRow>(
    `SELECT ${turnColumns} FROM turns WHERE id = $1 AND project_id = $2 AND hidden_at IS NULL`,
    [turnId, project],
  );
  return row === undefined ? null : turnFromRow(row);
}

/**
 * The turn of that id in whichever project, for the turn's own workflow: who may start workflows is
 * trusted with every project [14].
 */
export async function readTurnOfWorkflow(
  queryable: Queryable,
  turnId: string,
): Promise<Turn | null> {
  const [row] = await queryable.query<TurnRow>(`SELECT ${turnColumns} FROM turns WHERE id = $1`, [
    turnId,
  ]);
  return row === undefined ? null : turnFromRow(row);
}

/** The hash of what the turn was started with; `null` where there is no such turn. */
export async function readRequestHash(
  queryable: Queryable,
  turnId: string,
): Promise<Buffer | null> {
  const [row] = await queryable.query<{ request_hash: Buffer }>(
    "SELECT request_hash FROM turns WHERE id = $1",
    [turnId],
  );
  return row?.request_hash ?? null;
}

/** Hides a turn from the HTTP surface; its items stay. Returns whether there was one to hide. */
export async function hideTurn(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<boolean> {
  const rows = await queryable.query(
    `UPDATE turns SET hidden_at = now()
     WHERE id = $1 AND project_id = $2 AND hidden_at IS NULL RETURNING id`,
    [turnId, project],
  );
  return rows.length > 0;
}

export interface TurnFilter {
  status?: TurnStatus | undefined;
  conversationId?: string | undefined;
  agent?: string | undefined;
  createdAfter?: Date | undefined;
  createdBefore?: Date | undefined;
  /** Turn id of the last turn of the page before. */
  after?: string | undefined;
  limit: number;
}

/** What a list says of a turn: everything but its bodies. */
export type TurnSummary = Omit<Turn, "request" | "limits" | "output">;

/** A turn as a list has it. */
export interface ListedTurn extends TurnSummary {
  /** There is a replay of it, dry runs not counted. */
  isReplayed: boolean;
}

/** Turns of a project that were not deleted over HTTP, newest first. */
export async function listTurns(
  queryable: Queryable,
  project: string,
  filter: TurnFilter,
): Promise<ListedTurn[]> {
  const rows = await queryable.query<TurnRow & { is_replayed: boolean }>(
    `SELECT ${summaryColumns}, EXISTS (
       SELECT 1 FROM turns replay WHERE replay.replay_of = turns.id AND NOT replay.is_dry_run
     ) AS is_replayed
     FROM turns
     WHERE project_id = $1 AND hidden_at IS NULL
       AND ($2::text IS NULL OR status = $2)
       AND ($3::text IS NULL OR conversation_id = $3)
       AND ($4::text IS NULL OR agent = $4)
       AND ($5::timestamptz IS NULL OR created_at >= $5)
       AND ($6::timestamptz IS NULL OR created_at < $6)
       AND ($7::text IS NULL OR (created_at, id) <
         (SELECT created_at, id FROM turns cursor WHERE cursor.id = $7 AND cursor.project_id = $1))
     ORDER BY created_at DESC, id DESC LIMIT $8`,
    [
      project,
      filter.status ?? null,
      filter.conversationId ?? null,
      filter.agent ?? null,
      filter.createdAfter ?? null,
      filter.createdBefore ?? null,
      filter.after ?? null,
      filter.limit,
    ],
  );
  return rows.map((row) => ({ ...summaryFromRow(row), isReplayed: row.is_replayed }));
}
