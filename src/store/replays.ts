import type { ToolOutcome } from "../turn/effects.ts";
import { lifecycleEvent } from "../turn/events.ts";
import type { OutputEntry } from "../turn/events.ts";
import { Refusal } from "../turn/failures.ts";
import type { Failure } from "../turn/failures.ts";
import { newId } from "../turn/ids.ts";
import type { Item } from "../turn/items.ts";
import { answeredCall, callKey, callOf } from "../turn/pairs.ts";
import type { CallRef } from "../turn/pairs.ts";
import { prepareReplay } from "../turn/replay.ts";
import type { PreparedReplay, ReplayOptions, ReplayPlan, TurnReplay } from "../turn/replay.ts";
import type { TurnRequest } from "../turn/request.ts";
import { responseObject } from "../turn/response.ts";
import { takeOver } from "../turn/takeOver.ts";
import type { RecordedStep } from "../turn/takeOver.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict, ToolCall } from "../turn/verdict.ts";
import { admitTurn } from "./admission.ts";
import type { Admission, Admitted } from "./admission.ts";
import { busy, lockConversation, placeIn } from "./places.ts";
import type { Place } from "./places.ts";
import { addAgentVersion, listAgents, readAgentVersion } from "./agents.ts";
import type { Database, Queryable, Transaction } from "./database.ts";
import { appendEvents } from "./eventLog.ts";

interface Original {
  status: Turn["status"];
  conversation_id: string;
  base_position: number | null;
  origin_turn_id: string | null;
  failure: string | null;
  request: string;
}

async function readOriginal(tx: Queryable, project: string, turnId: string): Promise<Original> {
  const [row] = await tx.query<Original>(
    `SELECT status, conversation_id, base_position, origin_turn_id, failure, request
     FROM turns WHERE id = $1 AND project_id = $2 AND hidden_at IS NULL`,
    [turnId, project],
  );
  if (row !== undefined) return row;
  throw new Refusal("response_not_found", `Response with id '${turnId}' not found.`, "response_id");
}

function neverRan(original: Original): boolean {
  if (original.base_position === null) return true;
  const failure = JSON.parse(original.failure ?? "null") as Failure | null;
  return failure?.class === "unanswered_calls";
}

/** The calls that the conversation waited for at a turn's base: the turn has answered them all [9]. */
function callsAtBase({ input }: TurnRequest): CallRef[] {
  const own = new Set(input.map(callOf).flatMap((call) => (call === null ? [] : [callKey(call)])));
  return input
    .map(answeredCall)
    .filter((call) => call !== null)
    .filter((call) => !own.has(callKey(call)));
}

/**
 * Where a replay runs: in the conversation itself if the turn failed and nothing has come behind its
 * base, else in a fork at the base.
 */
async function placeReplay(tx: Transaction, project: string, plan: ReplayPlan): Promise<Place> {
  const { conversation_id: conversationId } = await readOriginal(tx, project, plan.of);
  const locked = await lockConversation(tx, project, conversationId);
  // Read again under the lock: the turn may have ended meanwhile.
  const original = await readOriginal(tx, project, plan.of);
  if (!isTerminal(original.status)) throw busy(plan.of);
  if (locked === undefined) {
    const problem = `The conversation '${conversationId}' of this response was deleted.`;
    throw new Refusal("conversation_not_found", problem, "response_id");
  }
  if (neverRan(original)) {
    const problem = `The response '${plan.of}' never ran, so there is nothing to replay; send its request again.`;
    throw new Refusal("not_replayable", problem, "response_id");
  }
  const isHead = original.status === "failed" && locked.next_position === original.base_position;
  const isInPlace = isHead && !plan.isForked;
  const own = isInPlace && plan.takesSteps ? "new" : "recorded";
  const replay: TurnReplay = {
    of: plan.of,
    originId: original.origin_turn_id ?? plan.of,
    effects: plan.allowsEffects ? "all" : own,
    isDryRun: plan.isDryRun,
  };
  if (isInPlace) {
    if (locked.holder_turn_id !== null) throw busy(locked.holder_turn_id);
    return { ...placeIn(conversationId, locked), replay };
  }
  const request = JSON.parse(original.request) as TurnRequest;
  const pendingCalls = callsAtBase(request);
  const fork = newId("conversation");
  tx.send(
    `INSERT INTO conversations (id, project_id, base_conversation_id, base_position, next_position,
       pending_calls, deleted_at)
     VALUES ($1, $2, $3, $4, $4, $5, CASE WHEN $6 THEN now() END)`,
    [
      fork,
      project,
      conversationId,
      original.base_position,
      JSON.stringify(pendingCalls),
      plan.isDryRun,
    ],
  );
  return { conversationId: fork, holder: null, pendingCalls, replay };
}

interface StepRow {
  number: number;
  kind: "model" | "tool";
  name: string;
  state: string;
  call: string | null;
  effect_key: string | null;
  outcome: ToolOutcome | null;
  verdict: string | null;
  items: string | null;
  output: string | null;
}

function stepFromRow(row: StepRow): RecordedStep {
  return {
    number: row.number,
    kind: row.kind,
    name: row.name,
    isFinished: row.state === "finished",
    call: JSON.parse(row.call ?? "null") as ToolCall | null,
    effectKey: row.effect_key,
    outcome: row.outcome,
    verdict: JSON.parse(row.verdict ?? "null") as StepVerdict | null,
    items: JSON.parse(row.items ?? "[]") as Item[],
    output: JSON.parse(row.output ?? "[]") as OutputEntry[],
  };
}

const json = (value: unknown): string | null => (value === null ? null : JSON.stringify(value));

/** Finished steps are taken over as such [7]; calls of tools that are not are scheduled. */
function insertSteps(tx: Transaction, turn: Turn, steps: readonly RecordedStep[]): void {
  const column = <Value>(value: (step: RecordedStep) => Value): Value[] => steps.map(value);
  tx.send(
    `INSERT INTO steps (turn_id, number, kind, name, call, state, effect_key, outcome, verdict, items,
       output, finished_at)
     SELECT $1, number, kind, name, call,
       CASE WHEN is_finished THEN 'finished' ELSE 'scheduled' END,
       effect_key, outcome, verdict, CASE WHEN is_finished THEN items END,
       CASE WHEN is_finished THEN output END, CASE WHEN is_finished THEN now() END
     FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[], $8::text[],
         $9::text[], $10::text[], $11::text[])
       AS taken (number, kind, name, call, is_finished, effect_key, outcome, verdict, items, output)`,
    [
      turn.id,
      column((step) => step.number),
      column((step) => step.kind),
      column((step) => step.name),
      column((step) => json(step.call)),
      column((step) => step.isFinished),
      column((step) => step.effectKey),
      column((step) => (step.isFinished ? step.outcome : null)),
      column((step) => json(step.verdict)),
      column((step) => JSON.stringify(step.items)),
      column((step) => JSON.stringify(step.output)),
    ],
  );
}

/** Puts the steps of the replayed turn under its replay, and what they have produced into its stream. */
async function takeStepsOver(tx: Transaction, turn: Turn, of: string): Promise<void> {
  const rows = await tx.query<StepRow>(
    `SELECT number, kind, name, state, call, effect_key, outcome, verdict, items, output
     FROM steps WHERE turn_id = $1 ORDER BY number`,
    [of],
  );
  const { steps, events, nextOutputIndex } = takeOver(rows.map(stepFromRow));
  if (steps.length === 0) return;
  insertSteps(tx, turn, steps);
  // The claim of a finished step says nothing of the turn's beginning.
  const begun = lifecycleEvent(responseObject(turn));
  await appendEvents(tx, turn, [begun, ...events], nextOutputIndex);
}

/**
 * Puts a replay on record, as {@link admitTurn} does with a turn.
 *
 * @throws Refusal `response_not_found`, `conversation_not_found`, `conversation_busy`,
 *   `not_replayable`, `unanswered_calls`, `unknown_call` or `idempotency_key_reused`.
 */
export function admitReplay(
  database: Database,
  admission: Admission,
  plan: ReplayPlan,
): Promise<Admitted> {
  return admitTurn(database, admission, {
    async place(tx) {
      if (plan.agent !== null) await addAgentVersion(tx, plan.agent);
      return placeReplay(tx, admission.project, plan);
    },
    async begin(tx, turn) {
      if (plan.takesSteps) await takeStepsOver(tx, turn, plan.of);
    },
  });
}

/**
 * Makes the turn that replays another one; see {@link prepareReplay}.
 *
 * @throws Refusal `unknown_agent` when the agent's version that the turn ran on is not on record.
 */
export async function readReplay(
  queryable: Queryable,
  original: Turn,
  options: ReplayOptions,
): Promise<PreparedReplay> {
  const { agent: name, agentVersion: version } = original;
  const [agents, agent] = await Promise.all([
    listAgents(queryable),
    readAgentVersion(queryable, name, version),
  ]);
  if (agent !== null) return prepareReplay(original, options, agent, agents);
  throw new Refusal("unknown_agent", `Version ${version} of the agent '${name}' is not on record.`);
}

/** What other turns of a chain of replays have on record of an effect [8]. */
export interface RecordedEffect {
  outcome: Exclude<ToolOutcome, "not_run">;
  /** What the model was told; `null` where nobody could tell. */
  output: string | null;
}

/**
 * The outcome of the same call in the turn that is replayed, or in another replay of it; `null` where
 * none has begun it. What is known goes before what is not, and the newer before the older.
 */
export async function findEffect(
  queryable: Queryable,
  turn: Turn,
  effectKey: string,
): Promise<RecordedEffect | null> {
  const [row] = await queryable.query<{
    state: string;
    outcome: ToolOutcome;
    items: string | null;
  }>(
    `SELECT steps.state, coalesce(steps.outcome, 'unknown') AS outcome, steps.items
     FROM steps JOIN turns ON turns.id = steps.turn_id
     WHERE steps.effect_key = $1 AND turns.project_id = $2 AND steps.turn_id <> $3
       AND CASE WHEN steps.state = 'finished' THEN steps.outcome <> 'not_run'
         -- One that reuses what is on record had not begun anything that may not be done again.
         ELSE steps.started_at IS NOT NULL AND turns.replay_effects IS DISTINCT FROM 'recorded' END
     ORDER BY (steps.outcome IN ('ok', 'error')) DESC NULLS LAST, steps.finished_at DESC NULLS LAST
     LIMIT 1`,
    [effectKey, turn.project, turn.id],
  );
  if (row === undefined) return null;
  const [item] = JSON.parse(row.items ?? "[]") as { output?: string }[];
  const outcome = row.outcome as RecordedEffect["outcome"];
  return { outcome, output: item?.output ?? null };
}
