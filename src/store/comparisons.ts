import { Refusal } from "../turn/failures.ts";
import type { Failure } from "../turn/failures.ts";
import { outputText } from "../turn/items.ts";
import type { Item } from "../turn/items.ts";
import { differenceOf } from "../turn/difference.ts";
import type { Difference } from "../turn/difference.ts";
import type { Turn } from "../turn/turn.ts";
import type { Queryable } from "./database.ts";
import { readModelCalls } from "./modelCalls.ts";
import { readStepRecords } from "./steps.ts";
import { readTurn, readVisibleTurn } from "./turns.ts";

/** One side of a comparison. */
export interface ComparedTurn {
  turnId: string;
  model: string;
  status: Turn["status"];
  failure: Failure | null;
  incompleteReason: string | null;
  text: string;
  /** Model calls and tool calls, those that were taken over included. */
  steps: number;
  /** Calls to the provider, wasted ones included; none of steps that were taken over. */
  modelCalls: number;
  inputTokens: number;
  outputTokens: number;
  /** US dollars; `null` where the cost of a call is not known. */
  costUsd: number | null;
  /** From the first step to the end; `null` while there is no end. */
  tookMs: number | null;
}

export interface TurnComparison {
  original: ComparedTurn;
  replay: ComparedTurn;
  /** Where the texts of the answers differ; `null` where they are the same. */
  difference: Difference | null;
}

async function readCompared(queryable: Queryable, turn: Turn): Promise<ComparedTurn> {
  const [steps, calls] = await Promise.all([
    readStepRecords(queryable, turn.project, turn.id),
    readModelCalls(queryable, turn.project, turn.id),
  ]);
  const { startedAt, endedAt } = turn;
  const isPriced = calls.every((call) => call.costUsd !== null);
  return {
    turnId: turn.id,
    model: turn.model,
    status: turn.status,
    failure: turn.failure,
    incompleteReason: turn.incompleteReason,
    text: outputText((turn.output ?? []) as Item[]),
    steps: steps.length,
    modelCalls: calls.length,
    inputTokens: calls.reduce((sum, call) => sum + (call.tokens?.inputTokens ?? 0), 0),
    outputTokens: calls.reduce((sum, call) => sum + (call.tokens?.outputTokens ?? 0), 0),
    costUsd: isPriced ? calls.reduce((sum, call) => sum + (call.costUsd ?? 0), 0) : null,
    tookMs: startedAt && endedAt ? endedAt.getTime() - startedAt.getTime() : null,
  };
}

/** A turn that was not deleted, or a dry run. @throws Refusal `response_not_found`. */
export async function readShown(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<Turn> {
  const turn = await readTurn(queryable, project, turnId);
  const isShown = turn?.replay?.isDryRun || (await readVisibleTurn(queryable, project, turnId));
  if (turn !== null && isShown) return turn;
  throw new Refusal("response_not_found", `Response with id '${turnId}' not found.`, "response_id");
}

/**
 * Compares a replay, also a dry run, with the turn that it replays.
 *
 * @throws Refusal `response_not_found`, or `invalid_value` when the turn is no replay.
 */
export async function compareReplay(
  queryable: Queryable,
  project: string,
  replayId: string,
): Promise<TurnComparison> {
  const replay = await readShown(queryable, project, replayId);
  if (replay.replay === null) {
    throw new Refusal("invalid_value", `The response '${replayId}' is no replay.`, "response_id");
  }
  const original = await readShown(queryable, project, replay.replay.of);
  const [before, after] = await Promise.all([
    readCompared(queryable, original),
    readCompared(queryable, replay),
  ]);
  return { original: before, replay: after, difference: differenceOf(before.text, after.text) };
}
