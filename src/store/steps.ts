import { closeOpenItems } from "../turn/openItems.ts";
import { lifecycleEvent } from "../turn/events.ts";
import type { OutputEntry, TurnEvent } from "../turn/events.ts";
import type { Item } from "../turn/items.ts";
import { responseObject } from "../turn/response.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict, ToolCall } from "../turn/verdict.ts";
import { one } from "./database.ts";
import type { Database, Queryable } from "./database.ts";
import { appendEvents, readAllEvents } from "./eventLog.ts";
import { openModelCall, wasteOpenCalls } from "./modelCalls.ts";
import { turnColumns, turnFromRow } from "./turns.ts";
import type { TurnRow } from "./turns.ts";

/** Names one try of one step [3]. Every write carries it; only the newest one writes. */
export interface Fence {
  turnId: string;
  step: number;
  runId: string;
  attempt: number;
}

/** Asks Temporal which run of a turn's workflow is current; `null` when it knows none. */
export type CurrentRun = (turnId: string) => Promise<string | null>;

export type Claim =
  | {
      outcome: "claimed";
      turn: Turn;
      /** The first free place of the response's output. */
      firstOutputIndex: number;
      /** An earlier attempt had begun, so what it did is unknown [8]. */
      wasRunning: boolean;
      /** The call of a tool step. */
      call: ToolCall | null;
      /** The ledger's row of a model step. */
      modelCallId: string | null;
    }
  /** The step is finished on record [7], or its turn has ended. */
  | { outcome: "recorded"; verdict: StepVerdict }
  /** Another run or a newer attempt has the step: write nothing, stop quietly. */
  | { outcome: "fenced" };

interface StepRow {
  state: "scheduled" | "running" | "finished" | "abandoned";
  run_id: string | null;
  attempt: number;
  token: string | null;
  verdict: string | null;
  call: string | null;
}

/** Takes the turn for a run: in one statement when the run on record is the same or none. */
async function takeTurn(
  tx: Queryable,
  turnId: string,
  runId: string,
  replacedRunId: string | null,
): Promise<{ turn: Turn; isFirst: boolean } | null> {
  const [row] = await tx.query<TurnRow & { was_admitted: boolean }>(
    `WITH before AS (SELECT id, status FROM turns WHERE id = $1)
     UPDATE turns SET status = 'running', run_id = $2, started_at = coalesce(started_at, now())
     FROM before
     WHERE turns.id = before.id AND turns.status IN ('admitted', 'running')
       AND (turns.run_id IS NULL OR turns.run_id = $2 OR turns.run_id = $3)
     RETURNING ${turnColumns}, before.status = 'admitted' AS was_admitted`,
    [turnId, runId, replacedRunId],
  );
  return row === undefined ? null : { turn: turnFromRow(row), isFirst: row.was_admitted };
}

export interface StepToClaim {
  fence: Fence;
  /** Random and the same for all sends of one claim, so that one whose answer was lost succeeds again. */
  token: string;
  kind: "model" | "tool";
}

async function takeStep(tx: Queryable, claim: StepToClaim, turn: Turn): Promise<StepRow | null> {
  const { fence } = claim;
  const [row] = await tx.query<StepRow>(
    `INSERT INTO steps AS mine
       (turn_id, number, kind, name, state, run_id, attempt, token, started_at)
     VALUES ($1, $2, $3, $4, 'running', $5, $6, $7, now())
     ON CONFLICT (turn_id, number) DO UPDATE
       SET state = 'running', run_id = $5, attempt = $6, token = $7, flushed = 0,
           started_at = coalesce(mine.started_at, now())
       WHERE mine.state = 'scheduled'
          OR (mine.state IN ('running', 'abandoned') AND (mine.run_id IS DISTINCT FROM $5 OR mine.attempt < $6))
          OR (mine.state = 'running' AND mine.token = $7)
     RETURNING state, run_id, attempt, token, verdict, call`,
    [fence.turnId, fence.step, claim.kind, turn.model, fence.runId, fence.attempt, claim.token],
  );
  return row ?? null;
}

async function readStep(tx: Queryable, fence: Fence): Promise<StepRow | undefined> {
  const [row] = await tx.query<StepRow>(
    `SELECT state, run_id, attempt, token, verdict, call FROM steps
     WHERE turn_id = $1 AND number = $2 FOR UPDATE`,
    [fence.turnId, fence.step],
  );
  return row;
}

/** Closes what the replaced attempt left open in the stream [6] and counts its call as wasted [7]. */
async function abandonPreviousAttempt(tx: Queryable, turn: Turn, step: number): Promise<void> {
  const { events } = closeOpenItems(await readAllEvents(tx, turn));
  await appendEvents(tx, turn, events);
  await wasteOpenCalls(tx, turn.id, step);
}

async function claimInside(
  tx: Queryable,
  claim: StepToClaim,
  replacedRunId: string | null,
): Promise<Claim | "other run"> {
  const { fence } = claim;
  const taken = await takeTurn(tx, fence.turnId, fence.runId, replacedRunId);
  if (taken === null) return explainUntaken(tx, fence);
  const { turn } = taken;
  const before = fence.step === 1 && taken.isFirst ? undefined : await readStep(tx, fence);
  if (before?.state === "finished") {
    return { outcome: "recorded", verdict: JSON.parse(before.verdict ?? "null") as StepVerdict };
  }
  const row = await takeStep(tx, claim, turn);
  if (row === null) return { outcome: "fenced" };
  const wasRunning =
    before !== undefined && before.state !== "scheduled" && before.token !== claim.token;
  if (claim.kind === "model" && wasRunning) await abandonPreviousAttempt(tx, turn, fence.step);
  if (taken.isFirst) await appendEvents(tx, turn, [inProgress(turn)]);
  const modelCallId = claim.kind === "model" ? await openModelCall(tx, turn, fence) : null;
  return {
    outcome: "claimed",
    turn,
    firstOutputIndex: await nextOutputIndex(tx, turn.id),
    wasRunning,
    call: row.call === null ? null : (JSON.parse(row.call) as ToolCall),
    modelCallId,
  };
}

function inProgress(turn: Turn): TurnEvent {
  return lifecycleEvent(responseObject(turn));
}

async function nextOutputIndex(tx: Queryable, turnId: string): Promise<number> {
  const row = await one(
    tx.query<{ next_output_index: number }>(
      "SELECT next_output_index FROM turn_heads WHERE turn_id = $1",
      [turnId],
    ),
  );
  return row.next_output_index;
}

async function explainUntaken(tx: Queryable, fence: Fence): Promise<Claim | "other run"> {
  const [row] = await tx.query<{ status: Turn["status"]; run_id: string | null }>(
    "SELECT status, run_id FROM turns WHERE id = $1",
    [fence.turnId],
  );
  if (row === undefined) return { outcome: "fenced" };
  if (isTerminal(row.status)) {
    return { outcome: "recorded", verdict: { next: "end", status: row.status } };
  }
  return row.run_id === fence.runId ? { outcome: "fenced" } : "other run";
}

/**
 * Claims a step for one attempt of one run [3], opens its row in the ledger [7], and closes what a
 * replaced attempt left open. A run that is not the one on record has to be the one that Temporal
 * calls current; Temporal is asked outside of any transaction.
 *
 * @throws whatever `currentRun` throws when Temporal is out of reach: try again.
 */
export async function claimStep(
  database: Database,
  claim: StepToClaim,
  currentRun: CurrentRun,
): Promise<Claim> {
  const first = await database.transaction((tx) => claimInside(tx, claim, null));
  if (first !== "other run") return first;
  const [onRecord] = await database.query<{ run_id: string | null }>(
    "SELECT run_id FROM turns WHERE id = $1",
    [claim.fence.turnId],
  );
  const current = await currentRun(claim.fence.turnId);
  if (current !== claim.fence.runId) return { outcome: "fenced" };
  const second = await database.transaction(async (tx) => {
    const replaced = onRecord?.run_id ?? null;
    const outcome = await claimInside(tx, claim, replaced);
    if (outcome !== "other run" && outcome.outcome === "claimed") {
      await abandonOtherRuns(tx, claim.fence);
    }
    return outcome;
  });
  return second === "other run" ? { outcome: "fenced" } : second;
}

/** A takeover rewrites all running step rows of its turn, so that their old owners are fenced. */
async function abandonOtherRuns(tx: Queryable, fence: Fence): Promise<void> {
  await tx.query(
    `UPDATE steps SET state = 'abandoned'
     WHERE turn_id = $1 AND state = 'running' AND run_id <> $2`,
    [fence.turnId, fence.runId],
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
  /** Events that have not been flushed; the ending carries them. */
  events: TurnEvent[];
  /** The first free place of the response's output. */
  nextOutputIndex: number;
}

/**
 * Marks the step finished under its fence and stores its result; part of the transaction that ends
 * the step. Returns false, and has changed nothing, when the writer has been replaced.
 */
export async function finishStep(
  tx: Queryable,
  turn: Turn,
  fence: Fence,
  result: StepResult,
): Promise<boolean> {
  const rows = await tx.query(
    `UPDATE steps SET state = 'finished', finished_at = now(), verdict = $5, items = $6, output = $7
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
    ],
  );
  if (rows.length === 0) return false;
  if (result.calls.length > 0) await scheduleCalls(tx, fence, result.calls);
  await appendEvents(tx, turn, result.events, result.nextOutputIndex);
  return true;
}

async function scheduleCalls(tx: Queryable, fence: Fence, calls: ToolCall[]): Promise<void> {
  await tx.query(
    `INSERT INTO steps (turn_id, number, kind, name, call, state)
     SELECT $1, $2 + number, 'tool', name, call, 'scheduled'
     FROM unnest($3::text[], $4::text[]) WITH ORDINALITY AS scheduled (name, call, number)
     ON CONFLICT (turn_id, number) DO NOTHING`,
    [
      fence.turnId,
      fence.step,
      calls.map((call) => call.name),
      calls.map((call) => JSON.stringify(call)),
    ],
  );
}

/** A step as an operator sees it. */
export interface StepRecord {
  number: number;
  kind: "model" | "tool";
  /** The provider's model, or the tool. */
  name: string;
  state: StepRow["state"];
  attempt: number;
  startedAt: Date | null;
  finishedAt: Date | null;
}

/** All steps of a turn, in order. */
export async function readStepRecords(
  queryable: Queryable,
  project: string,
  turnId: string,
): Promise<StepRecord[]> {
  const rows = await queryable.query<
    Pick<StepRecord, "number" | "kind" | "name" | "state" | "attempt"> & {
      started_at: Date | null;
      finished_at: Date | null;
    }
  >(
    `SELECT number, kind, name, state, attempt, steps.started_at, finished_at
     FROM steps JOIN turns ON turns.id = steps.turn_id
     WHERE steps.turn_id = $1 AND turns.project_id = $2 ORDER BY number`,
    [turnId, project],
  );
  return rows.map(({ started_at: startedAt, finished_at: finishedAt, ...row }) => ({
    ...row,
    startedAt,
    finishedAt,
  }));
}

/** Results of the turn's finished steps, in order. */
export interface FinishedStep {
  number: number;
  kind: "model" | "tool";
  items: Item[];
  output: OutputEntry[];
}

export async function readFinishedSteps(
  queryable: Queryable,
  turnId: string,
): Promise<FinishedStep[]> {
  const rows = await queryable.query<{
    number: number;
    kind: "model" | "tool";
    items: string;
    output: string;
  }>(
    `SELECT number, kind, items, output FROM steps
     WHERE turn_id = $1 AND state = 'finished' ORDER BY number`,
    [turnId],
  );
  return rows.map((row) => ({
    number: row.number,
    kind: row.kind,
    items: JSON.parse(row.items) as Item[],
    output: JSON.parse(row.output) as OutputEntry[],
  }));
}
