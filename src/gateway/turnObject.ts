import type { Database } from "../store/database.ts";
import { readModelCalls } from "../store/modelCalls.ts";
import type { ModelCallRecord } from "../store/modelCalls.ts";
import { readStepRecords } from "../store/steps.ts";
import type { StepRecord } from "../store/steps.ts";
import type { ListedTurn, TurnSummary } from "../store/turns.ts";
import type { Turn } from "../turn/turn.ts";

export type TurnObject = ReturnType<typeof turnObject>;

/** What a list says of a turn. */
export type ListedTurnObject = ReturnType<typeof listedTurnObject>;

export function listedTurnObject(turn: ListedTurn) {
  return { ...turnObject(turn), is_replayed: turn.isReplayed };
}

export function turnObject(turn: TurnSummary) {
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
    replay_of: turn.replay?.of ?? null,
    is_dry_run: turn.replay?.isDryRun ?? false,
  };
}

function stepObject(step: StepRecord) {
  const { number, kind, name, state, attempt, outcome, startedAt, finishedAt } = step;
  return {
    number,
    kind,
    name,
    state,
    attempt,
    outcome,
    started_at: startedAt,
    finished_at: finishedAt,
  };
}

/** How long a step waited between its call before and this one; `null` for its first call. */
function waitedMs(call: ModelCallRecord, before: ModelCallRecord | undefined): number | null {
  if (!before?.endedAt) return null;
  return Math.max(0, call.startedAt.getTime() - before.endedAt.getTime());
}

function modelCallObject(call: ModelCallRecord, before: ModelCallRecord | undefined) {
  return {
    step: call.step,
    attempt: call.attempt,
    waited_ms: waitedMs(call, before),
    model: call.model,
    response_id: call.responseId,
    request_id: call.requestId,
    outcome: call.outcome,
    certainty: call.certainty,
    failure_class: call.failureClass,
    failure_code: call.failureCode,
    failure_message: call.failureMessage,
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

/** A turn with all that it did. */
export type TurnStory = Awaited<ReturnType<typeof turnStory>>;

/** @param workflowsUrl where the Temporal UI shows workflows, without the id; `null`: not known. */
export async function turnStory(database: Database, turn: Turn, workflowsUrl: string | null) {
  const [steps, calls] = await Promise.all([
    readStepRecords(database, turn.project, turn.id),
    readModelCalls(database, turn.project, turn.id),
  ]);
  return {
    ...turnObject(turn),
    previous_response_id: turn.request.previousTurnId,
    background: turn.request.background,
    metadata: turn.request.metadata,
    limits: turn.limits,
    temporal_url: workflowsUrl === null ? null : `${workflowsUrl}/${turn.id}`,
    cost: totalCost(calls),
    steps: steps.map(stepObject),
    model_calls: calls.map((call, at) =>
      modelCallObject(
        call,
        calls.slice(0, at).findLast((before) => before.step === call.step),
      ),
    ),
  };
}
