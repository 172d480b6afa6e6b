import type { Spending } from "../turn/budget.ts";
import type { FailedCall } from "../turn/fallbacks.ts";
import { newId } from "../turn/ids.ts";
import { maxFailureCodeChars, maxFailureMessageChars } from "../turn/failures.ts";
import type { Failure, FailureClass } from "../turn/failures.ts";
import type { TokenCounts, Turn } from "../turn/turn.ts";
import { columnText } from "./columnText.ts";
import { one } from "./database.ts";
import type { Queryable, Transaction } from "./database.ts";
import type { Fence } from "./fence.ts";

/**
 * How sure the tokens and the cost of a call are. `exact`: the provider said them. `estimated`: from
 * what is on record of the request and the answer. `unknown`: nobody can say whether it cost anything.
 */
export type Certainty = "exact" | "estimated" | "unknown";

/** How a model call ended, for the ledger. */
export interface ModelCallEnd {
  id: string;
  outcome: "used" | "wasted";
  responseId: string | null;
  requestId: string | null;
  /** `null` where the provider did not say and nothing was estimated. */
  tokens: TokenCounts | null;
  /** Of the tokens, where there are any. */
  isEstimated: boolean;
  /** US dollars; `null` when the price of the model is unknown. */
  costUsd: number | null;
  failure: Failure | null;
}

/**
 * Writes a call into the ledger before its request leaves [7]. Returns the row's id.
 *
 * @param firstOutputIndex the first place of the response's output that is the call's to fill.
 */
export function openModelCall(
  tx: Transaction,
  turn: Turn,
  fence: Fence,
  firstOutputIndex: number,
): string {
  const id = newId("modelCall");
  tx.send(
    `INSERT INTO model_calls
       (id, project_id, turn_id, step, run_id, attempt, model, first_output_index)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
    [
      id,
      turn.project,
      turn.id,
      fence.step,
      fence.runId,
      fence.attempt,
      turn.model,
      firstOutputIndex,
    ],
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

/** What a turn has cost, wasted calls included. */
export interface SpentBefore {
  /** Before its running step. */
  step: Spending;
  /** Before the next call of that step: those that are over count as well. */
  call: Spending;
}

export async function readSpending(
  queryable: Queryable,
  turnId: string,
  step: number,
): Promise<SpentBefore> {
  const sum = await one(
    queryable.query<Record<"stepTokens" | "stepCost" | "callTokens" | "callCost", number>>(
      `SELECT coalesce(sum(tokens) FILTER (WHERE step < $2), 0)::bigint AS "stepTokens",
         coalesce(sum(cost_usd) FILTER (WHERE step < $2), 0)::float8 AS "stepCost",
         coalesce(sum(tokens), 0)::bigint AS "callTokens",
         coalesce(sum(cost_usd), 0)::float8 AS "callCost"
       FROM (SELECT step, input_tokens + output_tokens AS tokens, cost_usd FROM model_calls
         WHERE turn_id = $1 AND (step < $2 OR step = $2 AND outcome <> 'open')) AS calls`,
      [turnId, step],
    ),
  );
  return {
    step: { tokens: sum.stepTokens, costUsd: sum.stepCost },
    call: { tokens: sum.callTokens, costUsd: sum.callCost },
  };
}

/** Whether a call of the turn has failed with that class. */
export async function hasFailedAs(
  queryable: Queryable,
  turnId: string,
  failureClass: FailureClass,
): Promise<boolean> {
  const rows = await queryable.query(
    "SELECT id FROM model_calls WHERE turn_id = $1 AND failure_class = $2 LIMIT 1",
    [turnId, failureClass],
  );
  return rows.length > 0;
}

/** Writes what a call has cost exactly into a row that somebody else has closed as wasted. */
export async function completeWastedCall(queryable: Queryable, end: ModelCallEnd): Promise<void> {
  const rows = await queryable.query(
    "SELECT id FROM model_calls WHERE id = $1 AND outcome = 'wasted'",
    [end.id],
  );
  if (rows.length > 0) await closeModelCall(queryable, { ...end, outcome: "wasted" });
}

/**
 * Closes a row of the ledger. A row that a takeover has closed as wasted is only completed: what is
 * known replaces what was not, or was estimated.
 */
export async function closeModelCall(queryable: Queryable, end: ModelCallEnd): Promise<void> {
  await queryable.query(
    `UPDATE model_calls SET
       outcome = CASE WHEN outcome = 'open' THEN $2 ELSE outcome END,
       response_id = coalesce($3, response_id), request_id = coalesce($4, request_id),
       failure_class = coalesce(failure_class, $5),
       failure_code = coalesce(failure_code, $6), failure_message = coalesce(failure_message, $7),
       input_tokens = coalesce($8, input_tokens), cached_tokens = coalesce($9, cached_tokens),
       cache_write_tokens = coalesce($10, cache_write_tokens),
       output_tokens = coalesce($11, output_tokens),
       reasoning_tokens = coalesce($12, reasoning_tokens),
       cost_usd = CASE WHEN $8::bigint IS NULL THEN cost_usd ELSE $13 END,
       certainty = CASE WHEN $8::bigint IS NULL THEN certainty ELSE $14 END, ended_at = now()
     WHERE id = $1`,
    [
      end.id,
      end.outcome,
      end.responseId,
      end.requestId,
      end.failure?.class ?? null,
      end.failure && columnText(end.failure.code, maxFailureCodeChars),
      end.failure && columnText(end.failure.message, maxFailureMessageChars),
      end.tokens?.inputTokens ?? null,
      end.tokens?.cachedTokens ?? null,
      end.tokens?.cacheWriteTokens ?? null,
      end.tokens?.outputTokens ?? null,
      end.tokens?.reasoningTokens ?? null,
      end.costUsd,
      end.isEstimated ? "estimated" : "exact",
    ],
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
  certainty: Certainty;
  failureClass: FailureClass | null;
  failureCode: string | null;
  failureMessage: string | null;
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
  failure_code: string | null;
  failure_message: string | null;
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
    failureCode: row.failure_code,
    failureMessage: row.failure_message,
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
       failure_code, failure_message, input_tokens, cached_tokens, cache_write_tokens,
       output_tokens, reasoning_tokens, cost_usd, started_at, ended_at
     FROM model_calls WHERE turn_id = $1 AND project_id = $2 ORDER BY started_at, id`,
    [turnId, project],
  );
  return rows.map(recordFromRow);
}
