import { effectOf } from "../turn/effects.ts";
import type { ToolOutcome } from "../turn/effects.ts";
import type { OutputEntry, RecordedEvent, TurnEvent } from "../turn/events.ts";
import type { Item } from "../turn/items.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict, ToolCall } from "../turn/verdict.ts";
import type { Database, Queryable, Transaction } from "./database.ts";
import { appendEvents } from "./eventLog.ts";
import { closeModelCall } from "./modelCalls.ts";
import type { ModelCallEnd } from "./modelCalls.ts";
import type { Fence } from "./fence.ts";

/** Whether this attempt still has its step; locks the step's row, so that it stays so. */
export async function holdsStep(tx: Queryable, fence: Fence): Promise<boolean> {
  const rows = await tx.query(
    `SELECT number FROM steps
     WHERE turn_id = $1 AND number = $2 AND run_id = $3 AND attempt = $4 AND state = 'running'
     FOR UPDATE`,
    [fence.turnId, fence.step, fence.runId, fence.attempt],
  );
  return rows.length > 0;
}

/** Gives a step back that was claimed and not begun: for the next attempt it has never run [8]. */
export async function releaseStep(queryable: Queryable, fence: Fence): Promise<void> {
  await queryable.query(
    `UPDATE steps SET state = 'scheduled', started_at = NULL
     WHERE turn_id = $1 AND number = $2 AND run_id = $3 AND attempt = $4 AND state = 'running'`,
    [fence.turnId, fence.step, fence.runId, fence.attempt],
  );
}

/** What a finished step leaves on record. */
export interface StepResult {
  verdict: StepVerdict;
  /** Items in the form that goes to the model and into the conversation. */
  items: Item[];
  /** Items in the form that the response shows, with their places. */
  output: OutputEntry[];
  /** Tool calls that become the next steps, in order. */
  calls: ToolCall[];
  /** Of a tool step. */
  outcome?: ToolOutcome;
  /** Events that have not been flushed; the ending carries them. */
  events: TurnEvent[];
  /** The first free place of the response's output. */
  nextOutputIndex: number;
}

/**
 * Marks the step finished under its fence and stores its result, which answers every later claim [7];
 * part of the transaction that ends the step.
 *
 * @throws Replaced when the writer has been replaced: the transaction must not go on.
 */
export async function finishStep(tx: Transaction, fence: Fence, result: StepResult): Promise<void> {
  const rows = await tx.query(
    `UPDATE steps SET state = 'finished', finished_at = now(), verdict = $5, items = $6, output = $7,
       outcome = $8
     WHERE turn_id = $1 AND number = $2 AND run_id = $3 AND attempt = $4 AND state = 'running'
     RETURNING number`,
    [
      fence.turnId,
      fence.step,
      fence.runId,
      fence.attempt,
      JSON.stringify(result.verdict),
      JSON.stringify(result.items),
      JSON.stringify(result.output),
      result.outcome ?? null,
    ],
  );
  if (rows.length === 0) throw new Replaced();
}

/** A writer that has been replaced changes nothing and stops quietly [3]. */
export class Replaced extends Error {
  constructor() {
    super("The writer of this step has been replaced.");
    this.name = "Replaced";
  }
}

/**
 * Ends a step after which the turn goes on: its result, the tool calls that become steps, its last
 * events and its row in the ledger, all or none.
 *
 * @returns the events as they are on record.
 * @throws Replaced when the writer has been replaced, or an earlier send has stored the same.
 */
export function storeStep(
  database: Database,
  turn: Turn,
  fence: Fence,
  result: StepResult,
  modelCall: ModelCallEnd | null,
): Promise<RecordedEvent[]> {
  return database.transaction(async (tx) => {
    const finished = finishStep(tx, fence, result);
    if (result.verdict.next === "tools") {
      scheduleCalls(tx, turn, fence.step, result.verdict.tools, result.calls);
    }
    const closed = modelCall === null ? null : closeModelCall(tx, modelCall);
    const recorded = appendEvents(tx, turn, result.events, result.nextOutputIndex);
    await Promise.all([finished, closed, recorded]);
    return recorded;
  });
}

/** The calls of a turn that ask for the same are told apart by their order. */
function scheduleCalls(
  tx: Transaction,
  turn: Turn,
  modelStep: number,
  names: readonly string[],
  calls: readonly ToolCall[],
): void {
  tx.send(
    `INSERT INTO steps (turn_id, number, kind, name, call, state, effect_key)
     SELECT $1, $2 + number, 'tool', name, call, 'scheduled',
       effect || '/' || (row_number() OVER (PARTITION BY effect ORDER BY number) + (
         SELECT count(*) FROM steps
         WHERE turn_id = $1 AND steps.number <= $2 AND starts_with(effect_key, effect || '/')))
     FROM unnest($3::text[], $4::text[], $5::text[]) WITH ORDINALITY
       AS scheduled (name, call, effect, number)
     ON CONFLICT (turn_id, number) DO NOTHING`,
    [
      turn.id,
      modelStep,
      names,
      calls.map((call) => JSON.stringify(call)),
      calls.map((call) => effectOf(turn.replay?.originId ?? turn.id, call)),
    ],
  );
}

/** Results of the turn's finished steps, in order. */
export interface FinishedStep {
  number: number;
  kind: "model" | "tool";
  verdict: StepVerdict;
  items: Item[];
  output: OutputEntry[];
  finishedAt: Date;
}

export async function readFinishedSteps(
  queryable: Queryable,
  turnId: string,
): Promise<FinishedStep[]> {
  const rows = await queryable.query<{
    number: number;
    kind: "model" | "tool";
    verdict: string;
    items: string;
    output: string;
    finished_at: Date;
  }>(
    `SELECT number, kind, verdict, items, output, finished_at FROM steps
     WHERE turn_id = $1 AND state = 'finished' ORDER BY number`,
    [turnId],
  );
  return rows.map((row) => ({
    number: row.number,
    kind: row.kind,
    verdict: JSON.parse(row.verdict) as StepVerdict,
    items: JSON.parse(row.items) as Item[],
    output: JSON.parse(row.output) as OutputEntry[],
    finishedAt: row.finished_at,
  }));
}

/**
 * Whether somebody may be at a step of the turn at the moment, or the provider for it. A model step
 * whose call is closed in the ledger waits for its next attempt.
 */
export async function isAtWork(queryable: Queryable, turnId: string): Promise<boolean> {
  const rows = await queryable.query(
    `SELECT number FROM steps
     WHERE turn_id = $1 AND (
       state IN ('running', 'abandoned') AND response_id IS NOT NULL
       OR state = 'running' AND (kind = 'tool' OR EXISTS (
         SELECT FROM model_calls
         WHERE turn_id = $1 AND step = steps.number AND outcome = 'open')))
     LIMIT 1`,
    [turnId],
  );
  return rows.length > 0;
}

/** A step as a turn's story tells it. */
export interface StepRecord {
  number: number;
  kind: "model" | "tool";
  /** The model's or the tool's name. */
  name: string;
  state: "scheduled" | "running" | "finished" | "abandoned";
  attempt: number;
  /** Of a tool call that is over. */
  outcome: ToolOutcome | null;
  startedAt: Date | null;
  finishedAt: Date | null;
}

/** The steps of a turn of that project, in order. */
export async function readStepRecords(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<StepRecord[]> {
  return queryable.query<StepRecord>(
    `SELECT steps.number, steps.kind, steps.name, steps.state, steps.attempt,
       CASE WHEN steps.kind = 'tool' AND steps.state = 'abandoned' AND steps.started_at IS NOT NULL
         THEN 'unknown' ELSE steps.outcome END AS outcome,
       steps.started_at AS "startedAt", steps.finished_at AS "finishedAt"
     FROM steps JOIN turns ON turns.id = steps.turn_id
     WHERE steps.turn_id = $1 AND turns.project_id = $2 ORDER BY steps.number`,
    [turnId, project],
  );
}
