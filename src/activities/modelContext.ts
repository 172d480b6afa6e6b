import { assembleContext, full, withoutReasoning } from "../context/assemble.ts";
import type { ModelCall } from "../responses/call.ts";
import { readHistory } from "../store/conversations.ts";
import type { Database } from "../store/database.ts";
import { hasFailedAs, readSpending } from "../store/modelCalls.ts";
import type { SpentBefore } from "../store/modelCalls.ts";
import { readFinishedSteps } from "../store/steps.ts";
import type { FinishedStep } from "../store/steps.ts";
import type { ToolRegistry } from "../tools/registry.ts";
import type { Agent } from "../turn/agent.ts";
import { lastCallMessage, reachedLimit } from "../turn/budget.ts";
import type { BudgetLimit } from "../turn/budget.ts";
import type { Item } from "../turn/items.ts";
import type { Turn } from "../turn/turn.ts";

/** A model call with what the turn's earlier steps have to do with it. */
export interface NextModelCall {
  call: ModelCall;
  /** Ids and call ids that are taken in the conversation. */
  usedIds: string[];
  /** Bytes of JSON that the model has written in this turn so far. */
  writtenBytes: number;
  /** The limit that the turn has reached: then this is its last call, without tools [13]. */
  limit: BudgetLimit | null;
}

/** Reads the conversation and makes the model call of a turn's next step. */
export async function readModelCall(
  database: Database,
  tools: ToolRegistry,
  turn: Turn,
  agent: Agent,
  step: { number: number; isUntried: boolean },
): Promise<NextModelCall> {
  const { conversation, previousTurnId } = turn.request;
  // A conversation that was made for this turn has nothing in it, and nobody writes to it meanwhile.
  const isNew = conversation === null && previousTurnId === null;
  const isFirst = step.number === 1;
  const isFirstCall = isNew && isFirst && !hasReasoning(turn.request.input);
  const [history, steps, spent, isReasoningRefused] = await Promise.all([
    isNew ? [] : readHistory(database, turn.project, turn.conversationId),
    isFirst ? [] : readFinishedSteps(database, turn.id),
    isFirst && step.isUntried ? null : readSpending(database, turn.id, step.number),
    // Whether the provider could not use what was reasoned before: on record, and for the rest of the
    // turn, so that every worker decides the same and calls stay prefixes [10].
    isFirstCall ? false : hasFailedAs(database, turn.id, "item_not_found"),
  ]);
  const { input } = turn.request;
  const made = steps.flatMap((each) => each.items);
  const written = steps.flatMap((each) => (each.kind === "model" ? each.items : []));
  const limit = limitOf(steps) ?? limitBefore(turn, spent, steps);
  const hasCalled = steps.some((each) => each.kind === "tool");
  const asked = { ...agent.parameters, ...turn.request.parameters };
  const parameters = hasCalled ? withoutForcedCall(asked) : asked;
  const items = [...history, ...input, ...made];
  const strategy = isReasoningRefused ? withoutReasoning : full;
  const call = {
    model: turn.model,
    instructions: turn.request.instructions ?? agent.instructions,
    input: assembleContext({ history, input, steps: made }, strategy),
    tools: [...agent.tools.map((name) => tools.definitionOf(name)), ...turn.request.tools],
    parameters,
    keepAs: agent.durability === "background" ? { turn: turn.id, step: String(step.number) } : null,
  };
  return {
    call: limit === null ? call : lastCall(call, limit),
    limit,
    usedIds: items.flatMap(idsOf),
    writtenBytes: written.reduce((sum, item) => sum + Buffer.byteLength(JSON.stringify(item)), 0),
  };
}

/**
 * In the API one call of the model satisfies a `tool_choice` that forces one; a turn makes several, and
 * would never come to its answer.
 */
function withoutForcedCall(parameters: Record<string, unknown>): Record<string, unknown> {
  const choice = parameters["tool_choice"];
  if (choice === "required") return { ...parameters, tool_choice: "auto" };
  if (typeof choice !== "object" || choice === null) return parameters;
  const isAllowed = (choice as { type?: unknown }).type === "allowed_tools";
  return { ...parameters, tool_choice: isAllowed ? { ...choice, mode: "auto" } : "auto" };
}

/** A step that asked for more tools than the turn may run. */
function limitOf(steps: readonly FinishedStep[]): BudgetLimit | null {
  const limits = steps.map(({ verdict }) => (verdict.next === "tools" ? verdict.limit : null));
  return limits.find((limit) => limit !== null && limit !== undefined) ?? null;
}

/**
 * What was reached before the step comes first, so that a last call which is made again is the same,
 * whatever the one that broke has cost.
 */
function limitBefore(
  turn: Turn,
  spent: SpentBefore | null,
  steps: readonly FinishedStep[],
): BudgetLimit | null {
  if (spent === null) return null;
  return reachedLimit(turn, spent.step, steps) ?? reachedLimit(turn, spent.call, steps);
}

/** The tools stay defined, so that what was sent stays a prefix [10], but none may be called. */
function lastCall(call: ModelCall, limit: BudgetLimit): ModelCall {
  const input = [...call.input, lastCallMessage(limit)];
  if (call.tools.length === 0) return { ...call, input };
  return { ...call, input, parameters: { ...call.parameters, tool_choice: "none" } };
}

function hasReasoning(items: readonly Item[]): boolean {
  return items.some((item) => item.type === "reasoning");
}

function idsOf(item: Item): string[] {
  const callId = item["call_id"];
  return typeof callId === "string" ? [item.id, callId] : [item.id];
}
