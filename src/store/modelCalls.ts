import type { Spending } from "../turn/budget.ts";
import type { FailedCall } from "../turn/fallbacks.ts";
import { newId } from "../turn/ids.ts";
import type { FailureClass } from "../turn/failures.ts";
import type { TokenCounts, Turn } from "../turn/turn.ts";
import { one } from "./database.ts";
import type { Queryable, Transaction } from "./database.ts";
import type { Fence } from "./fence.ts";

/** How a model call ended, for the ledger. */
export interface ModelCallEnd {
  id: string;
  outcome: "used" | "wasted";
  responseId: string | null;
  requestId: string | null;
  /** `null` where the provider did not say. */
  tokens: TokenCounts | null;
  /** US dollars; `null` when the price of the model is unknown. */
  costUsd: number | null;
  failureClass: FailureClass | null;
}

/** Writes a call into the ledger before its request leaves [7]. Returns the row's id. */
export function openModelCall(tx: Transaction, turn: Turn, fence: Fence): string {
  const id = newId("modelCall");
  tx.send(
    `INSERT INTO model_calls (id, project_id, turn_id, step, run_id, attempt, model)
     VALUES ($1, $2, $3, $4, $5, $6, $7)`,
    [id, turn.project, turn.id, fence.step, fence.runId, fence.attempt, turn.model],
  );
  return id;
}

/** The row of a step's call that is not over: only one is open at a time. */
export async function findOpenModelCall(tx: Queryable, fence: Fence): Promise<string | null> {
  const [row] = await tx.query<{ id: string }>(
    "SELECT id FROM model_calls WHERE turn_id = $1 AND step = $2 AND outcome = 'open'",
    [fence.turnId, fence.step],
  );
  return row?.id ?? null;
}

/** Takes back the row of a call whose request never left. */
export async function dropModelCall(queryable: Queryable, id: string): Promise<void> {
  await queryable.query("DELETE FROM model_calls WHERE id = $1 AND outcome = 'open'", [id]);
}

/** The calls of a step that have failed so far, oldest first. */
export function readFailedCalls(
  queryable: Queryable,
  step: { turnId: string; step: number },
): Promise<FailedCall[]> {
  return queryable.query<FailedCall>(
    `SELECT model, failure_class AS class FROM model_calls
     WHERE turn_id = $1 AND step = $2 AND failure_class IS NOT NULL ORDER BY started_at, id`,
    [step.turnId, step.step],
  );
}

/** What a turn's steps before `step` have cost, wasted calls included. */
export function readSpending(
  queryable: Queryable,
  turnId: string,
  step: number,
): Promise<Spending> {
  return one(
    queryable.query<Spending>(
      `SELECT coalesce(sum(input_tokens + output_tokens), 0)::bigint AS tokens,
         coalesce(sum(cost_usd), 0)::float8 AS "costUsd"
       FROM model_calls WHERE turn_id = $1 AND step < $2`,
      [turnId, step],
    ),
  );
}

/** How many calls of a turn have failed with that class. */
export async function countFailedAs(
  queryable: Queryable,
  turnId: string,
  failureClass: FailureClass,
): Promise<number> {
  const { failed } = await one(
    queryable.query<{ failed: number }>(
      `SELECT count(*) AS failed FROM model_calls WHERE turn_id = $1 AND failure_class = $2`,
      [turnId, failureClass],
    ),
  );
  return failed;
}

/** Closes a row of the ledger. A row that a takeover has closed as wasted is only completed. */
export async function closeModelCall(queryable: Queryable, end: ModelCallEnd): Promise<void> {
  await queryable.query(
    `UPDATE model_calls SET
       outcome = CASE WHEN outcome = 'open' THEN $2 ELSE outcome END,
       response_id = coalesce($3, response_id),
       request_id = coalesce($4, request_id), failure_class = coalesce(failure_class, $5),
       input_tokens = $6, cached_tokens = $7, cache_write_tokens = $8, output_tokens = $9,
       reasoning_tokens = $10, cost_usd = $11,
       certainty = CASE WHEN $6::bigint IS NULL THEN 'unknown' ELSE 'exact' END, ended_at = now()
     WHERE id = $1`,
    [
      end.id,
      end.outcome,
      end.responseId,
      end.requestId,
      end.failureClass,
      end.tokens?.inputTokens ?? null,
      end.tokens?.cachedTokens ?? null,
      end.tokens?.cacheWriteTokens ?? null,
      end.tokens?.outputTokens ?? null,
      end.tokens?.reasoningTokens ?? null,
      end.costUsd,
    ],
  );
}

/** Calls whose owner is gone cannot be used any more; their tokens stay unknown. */
export async function wasteOpenCalls(tx: Queryable, turnId: string, step?: number): Promise<void> {
  await tx.query(
    `UPDATE model_calls SET outcome = 'wasted', ended_at = now(),
       response_id = coalesce(response_id, (SELECT steps.response_id FROM steps
         WHERE steps.turn_id = $1 AND steps.number = model_calls.step))
     WHERE turn_id = $1 AND outcome = 'open' AND ($2::int IS NULL OR step = $2)`,
    [turnId, step ?? null],
  );
}

/** A turn's model calls, as the ledger has them. */
export interface ModelCallRecord {
  step: number;
  attempt: number;
  model: string;
  responseId: string | null;
  requestId: string | null;
  outcome: "open" | "used" | "wasted";
  certainty: "exact" | "unknown";
  failureClass: FailureClass | null;
  tokens: TokenCounts | null;
  costUsd: number | null;
  startedAt: Date;
  endedAt: Date | null;
}

interface ModelCallRow {
  step: number;
  attempt: number;
  model: string;
  response_id: string | null;
  request_id: string | null;
  outcome: ModelCallRecord["outcome"];
  certainty: ModelCallRecord["certainty"];
  failure_class: FailureClass | null;
  input_tokens: number | null;
  cached_tokens: number | null;
  cache_write_tokens: number | null;
  output_tokens: number | null;
  reasoning_tokens: number | null;
  cost_usd: string | null;
  started_at: Date;
  ended_at: Date | null;
}

function recordFromRow(row: ModelCallRow): ModelCallRecord {
  return {
    step: row.step,
    attempt: row.attempt,
    model: row.model,
    responseId: row.response_id,
    requestId: row.request_id,
    outcome: row.outcome,
    certainty: row.certainty,
    failureClass: row.failure_class,
    tokens:
      row.input_tokens === null
        ? null
        : {
            inputTokens: row.input_tokens,
            cachedTokens: row.cached_tokens ?? 0,
            cacheWriteTokens: row.cache_write_tokens ?? 0,
            outputTokens: row.output_tokens ?? 0,
            reasoningTokens: row.reasoning_tokens ?? 0,
          },
    costUsd: row.cost_usd === null ? null : Number(row.cost_usd),
    startedAt: row.started_at,
    endedAt: row.ended_at,
  };
}

export async function readModelCalls(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<ModelCallRecord[]> {
  const rows = await queryable.query<ModelCallRow>(
    `SELECT step, attempt, model, response_id, request_id, outcome, certainty, failure_class,
       input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd,
       started_at, ended_at
     FROM model_calls WHERE turn_id = $1 AND project_id = $2 ORDER BY started_at, id`,
    [turnId, project],
  );
  return rows.map(recordFromRow);
}
