import type { FastifyInstance } from "fastify";
import type { Database } from "../store/database.ts";
import { readModelCalls } from "../store/modelCalls.ts";
import type { ModelCallRecord } from "../store/modelCalls.ts";
import { readStepRecords } from "../store/steps.ts";
import type { StepRecord } from "../store/steps.ts";
import { listTurns } from "../store/turns.ts";
import type { TurnSummary } from "../store/turns.ts";
import { Refusal } from "../turn/failures.ts";
import type { TurnStatus } from "../turn/turn.ts";
import { listObject, pageQuery, querySchema } from "./page.ts";

const statuses: TurnStatus[] = [
  "queued",
  "admitted",
  "running",
  "completed",
  "incomplete",
  "failed",
  "cancelled",
];

const id = { type: "string", pattern: "^[\\w.:-]{1,128}$" };

const listQuery = {
  status: { type: "string", enum: statuses },
  conversation: id,
  agent: id,
  created_after: { type: "string" },
  created_before: { type: "string" },
  after: id,
  limit: pageQuery.limit,
};

interface ListQuery {
  status?: TurnStatus;
  conversation?: string;
  agent?: string;
  created_after?: string;
  created_before?: string;
  after?: string;
  limit: number;
}

/** A time in a query: ISO 8601, or seconds since 1970. */
function timeOf(value: string | undefined, param: string): Date | undefined {
  if (value === undefined) return undefined;
  const isSeconds = /^\d+(\.\d+)?$/.test(value);
  const isIso = /^\d{4}-\d\d-\d\d([T ]|$)/.test(value);
  const time = new Date(isSeconds ? Number(value) * 1000 : isIso ? value : Number.NaN);
  if (!Number.isNaN(time.getTime())) return time;
  throw new Refusal("invalid_value", `'${param}' must be an ISO 8601 time or Unix seconds.`, param);
}

function turnObject(turn: TurnSummary) {
  return {
    id: turn.id,
    object: "turn",
    status: turn.status,
    conversation_id: turn.conversationId,
    agent: turn.agent,
    agent_version: turn.agentVersion,
    model: turn.model,
    original_model: turn.originalModel,
    degraded: turn.degraded,
    created_at: turn.createdAt,
    started_at: turn.startedAt,
    ended_at: turn.endedAt,
    deadline_at: turn.deadlineAt,
    cancel_requested_at: turn.cancelRequestedAt,
    usage: turn.usage,
    incomplete_reason: turn.incompleteReason,
    failure: turn.failure,
  };
}

function stepObject(step: StepRecord) {
  const { number, kind, name, state, attempt, startedAt, finishedAt } = step;
  return { number, kind, name, state, attempt, started_at: startedAt, finished_at: finishedAt };
}

function modelCallObject(call: ModelCallRecord) {
  return {
    step: call.step,
    attempt: call.attempt,
    model: call.model,
    response_id: call.responseId,
    request_id: call.requestId,
    outcome: call.outcome,
    certainty: call.certainty,
    failure_class: call.failureClass,
    input_tokens: call.tokens?.inputTokens ?? null,
    cached_tokens: call.tokens?.cachedTokens ?? null,
    cache_write_tokens: call.tokens?.cacheWriteTokens ?? null,
    output_tokens: call.tokens?.outputTokens ?? null,
    reasoning_tokens: call.tokens?.reasoningTokens ?? null,
    cost_usd: call.costUsd,
    started_at: call.startedAt,
    ended_at: call.endedAt,
  };
}

/** All known costs, wasted calls included; `is_complete` says whether every call's is known. */
function totalCost(calls: readonly ModelCallRecord[]) {
  return {
    usd: calls.reduce((sum, call) => sum + (call.costUsd ?? 0), 0),
    is_complete: calls.every((call) => call.costUsd !== null),
  };
}

/** `/turnkeeper/v1/turns`: what turns did, why they failed and what they cost. Times are ISO 8601. */
export function addTurnRoutes(app: FastifyInstance, database: Database): void {
  app.get<{ Querystring: ListQuery }>(
    "/turnkeeper/v1/turns",
    { schema: querySchema(listQuery) },
    async (request) => {
      const { query } = request;
      const { project, turns } = request.caller;
      // An unknown one would give an empty page, which reads as the end of the list.
      if (query.after !== undefined) await turns.read(query.after);
      const found = await listTurns(database, project, {
        status: query.status,
        conversationId: query.conversation,
        agent: query.agent,
        createdAfter: timeOf(query.created_after, "created_after"),
        createdBefore: timeOf(query.created_before, "created_before"),
        after: query.after,
        limit: query.limit + 1,
      });
      return listObject(found.map(turnObject), query.limit);
    },
  );

  app.get<{ Params: { id: string } }>("/turnkeeper/v1/turns/:id", async (request) => {
    const { project, turns } = request.caller;
    const turn = await turns.read(request.params.id);
    const steps = await readStepRecords(database, project, turn.id);
    const calls = await readModelCalls(database, project, turn.id);
    return {
      ...turnObject(turn),
      previous_response_id: turn.request.previousTurnId,
      background: turn.request.background,
      metadata: turn.request.metadata,
      limits: turn.limits,
      cost: totalCost(calls),
      steps: steps.map(stepObject),
      model_calls: calls.map(modelCallObject),
    };
  });
}
