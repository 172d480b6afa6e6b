import type { Queryable } from "./database.ts";

/** What the ledger can be added up by, and the column that names it in `model_call_costs`. */
const keyColumns = {
  turn: "turn_id",
  conversation: "conversation_id",
  agent: "agent",
  user: "user_id",
  model: "model",
  day: "day",
} as const;

export type CostSubject = keyof typeof keyColumns;

export const costSubjects = Object.keys(keyColumns) as CostSubject[];

/** Calls, tokens and US dollars, all calls included, wasted ones among them. */
export interface CostFigures {
  turns: number;
  calls: number;
  calls_used: number;
  calls_wasted: number;
  calls_exact: number;
  calls_estimated: number;
  calls_unknown: number;
  /** Calls whose tokens are known and whose model has no known price. */
  calls_unpriced: number;
  input_tokens: number;
  cached_tokens: number;
  cache_write_tokens: number;
  output_tokens: number;
  reasoning_tokens: number;
  cost_usd: number;
  /** The part of `cost_usd` that bought nothing. */
  wasted_cost_usd: number;
}

export interface Cost extends CostFigures {
  /** The turn, the conversation, ...; `null`: of requests that named no user. */
  key: string | null;
}

export interface CostFilter {
  by: CostSubject;
  /** Calls that began then or later. */
  from?: Date | undefined;
  /** Calls that began earlier. */
  to?: Date | undefined;
  /** Days by their date, everything else by its cost. */
  order: "asc" | "desc";
  limit: number;
}

/** The figures of the views `cost_by_*`, over the rows of `model_call_costs`. */
const figures = `
  count(DISTINCT turn_id) AS turns,
  count(*) AS calls,
  count(*) FILTER (WHERE outcome = 'used') AS calls_used,
  count(*) FILTER (WHERE outcome = 'wasted') AS calls_wasted,
  count(*) FILTER (WHERE certainty = 'exact') AS calls_exact,
  count(*) FILTER (WHERE certainty = 'estimated') AS calls_estimated,
  count(*) FILTER (WHERE certainty = 'unknown') AS calls_unknown,
  count(*) FILTER (WHERE certainty <> 'unknown' AND cost_usd IS NULL) AS calls_unpriced,
  coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
  coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
  coalesce(sum(cache_write_tokens), 0)::bigint AS cache_write_tokens,
  coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
  coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
  coalesce(sum(cost_usd), 0)::float8 AS cost_usd,
  coalesce(sum(cost_usd) FILTER (WHERE outcome = 'wasted'), 0)::float8 AS wasted_cost_usd`;

const inRange = `project_id = $1
  AND ($2::timestamptz IS NULL OR started_at >= $2)
  AND ($3::timestamptz IS NULL OR started_at < $3)`;

/** What the calls of a project have cost in a range of time, by whatever they belong to. */
export function readCosts(
  queryable: Queryable,
  project: string,
  { by, from, to, order, limit }: CostFilter,
): Promise<Cost[]> {
  const sorted = by === "day" ? "day" : "cost_usd";
  return queryable.query<Cost>(
    `SELECT ${keyColumns[by]}::text AS key, ${figures} FROM model_call_costs
     WHERE ${inRange} GROUP BY ${keyColumns[by]} ORDER BY ${sorted} ${order}, key LIMIT $4`,
    [project, from ?? null, to ?? null, limit],
  );
}

/** The same over everything in that range. */
export async function readTotalCost(
  queryable: Queryable,
  project: string,
  { from, to }: Pick<CostFilter, "from" | "to">,
): Promise<CostFigures> {
  const [total] = await queryable.query<CostFigures>(
    `SELECT ${figures} FROM model_call_costs WHERE ${inRange}`,
    [project, from ?? null, to ?? null],
  );
  if (total === undefined) throw new Error("An aggregate returned no row.");
  return total;
}
