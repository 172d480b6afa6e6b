import { closeOpenItems } from "../turn/openItems.ts";
import { lifecycleEvent } from "../turn/events.ts";
import type { RecordedEvent, TurnEvent } from "../turn/events.ts";
import type { Failure } from "../turn/failures.ts";
import { responseObject } from "../turn/response.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import { turnEnd } from "../turn/verdict.ts";
import type { StepVerdict, ToolCall } from "../turn/verdict.ts";
import type { Database, Queryable, Transaction } from "./database.ts";
import { appendEvents, readAllEvents, readShownIds } from "./eventLog.ts";
import { headStartStaleMs, isHeadStart, readHeadStart } from "./headStarts.ts";
import { findOpenModelCall, openModelCall } from "./modelCalls.ts";
import { wasteOpenCalls } from "./wastedCalls.ts";
import { turnColumns, turnFromRow } from "./turns.ts";
import type { TurnRow } from "./turns.ts";
import type { Fence } from "./fence.ts";

/** Asks Temporal which run of a turn's workflow is current; `null` when it knows none. */
export type CurrentRun = (turnId: string) => Promise<string | null>;

export type Claim =
  | {
      outcome: "claimed";
      turn: Turn;
      /** The first free place of the response's output. */
      firstOutputIndex: number;
      /** Ids and call ids that the turn's stream has shown; a model step must not show them again. */
      shownIds: string[];
      /** Nobody has claimed the step before, so nothing was spent on it. */
      isUntried: boolean;
      /** An earlier attempt had begun, so what it did is unknown [8]. */
      wasRunning: boolean;
      /** The call of a tool step. */
      call: JournalledCall | null;
      /** The ledger's row of a model step. */
      modelCallId: string | null;
      /** The response that an earlier attempt began and the provider keeps [7]. */
      kept: KeptResponse | null;
      /** What the claim has put on record. */
      events: RecordedEvent[];
      /** `Date.now()` before it was asked for: nobody had replaced it by then. */
      askedAt: number;
    }
  /** The step is finished on record [7], or its turn has ended. */
  | { outcome: "recorded"; verdict: StepVerdict }
  /** Another run or a newer attempt has the step: write nothing, stop quietly. */
  | { outcome: "fenced" }
  /** The process that admitted the turn is at its first step already: look again soon. */
  | { outcome: "head_started" }
  /** No such turn is on record. */
  | { outcome: "unknown_turn" };

/** A call of a tool as its step's row has it. */
export interface JournalledCall extends ToolCall {
  /** The idempotency key of its effect [8]. */
  effectKey: string;
}

function readCall({ call, effect_key }: StepRow): JournalledCall | null {
  if (call === null || effect_key === null) return null;
  return { ...(JSON.parse(call) as ToolCall), effectKey: effect_key };
}

/** A response that can be gone on with: its stream behind `cursor`, or all of it. */
export interface KeptResponse {
  responseId: string;
  /** The provider's number of the last event that is on record; `null`: it gives none. */
  cursor: number | null;
  /** The place of the response's first item in the turn's output. */
  firstOutputIndex: number;
  /** What is on record of it, in the turn's own events. */
  events: TurnEvent[];
}

interface StepRow {
  state: "scheduled" | "running" | "finished" | "abandoned";
  run_id: string | null;
  attempt: number;
  token: string | null;
  verdict: string | null;
  call: string | null;
  effect_key: string | null;
  response_id: string | null;
  cursor: number | null;
  first_output_index: number | null;
  was_seen: boolean;
}

/** The owner of a head start has given a sign of life after it was taken for dead. */
class HeadStartLives extends Error {}

export interface StepToClaim {
  fence: Fence;
  /** Random and the same for all sends of one claim, so that one whose answer was lost succeeds again. */
  token: string;
  kind: "model" | "tool";
}

interface TakenTurn {
  turn: Turn;
  isFirst: boolean;
}

/** Takes the turn for a run, which has to be the one on record, or to replace `replacedRunId`. */
async function takeTurn(
  tx: Queryable,
  turnId: string,
  runId: string,
  replacedRunId: string | null,
): Promise<TakenTurn | null> {
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

async function readStep(tx: Queryable, fence: Fence): Promise<StepRow | undefined> {
  const [row] = await tx.query<StepRow>(
    `SELECT state, run_id, attempt, token, verdict, call, effect_key, response_id, cursor,
       first_output_index,
       seen_at > clock_timestamp() - make_interval(secs => $3::float8 / 1000) AS was_seen
     FROM steps
     WHERE turn_id = $1 AND number = $2 FOR UPDATE`,
    [fence.turnId, fence.step, headStartStaleMs],
  );
  return row;
}

/**
 * The first free place of the response's output. To be read once the step's row is locked: until
 * then the attempt that is being replaced may still announce items.
 */
async function readOutputIndex(tx: Queryable, turnId: string): Promise<number> {
  const [row] = await tx.query<{ next_output_index: number }>(
    "SELECT next_output_index FROM turn_heads WHERE turn_id = $1",
    [turnId],
  );
  return row?.next_output_index ?? 0;
}

/** Attempts compare within one run only; which run is current was settled when the turn was taken. */
function mayTake(before: StepRow, { fence, token }: StepToClaim): boolean {
  if (before.state === "scheduled" || before.run_id !== fence.runId) return true;
  return before.attempt < fence.attempt || before.token === token;
}

/** The turn's row is locked, so nobody else can have claimed the step meanwhile. */
function takeStep(tx: Transaction, claim: StepToClaim, turn: Turn, firstOutputIndex: number): void {
  const { fence } = claim;
  tx.send(
    `INSERT INTO steps AS mine (turn_id, number, kind, name, state, run_id, attempt, token,
       first_output_index, started_at, seen_at)
     VALUES ($1, $2, $3, $4, 'running', $5, $6, $7, $8, now(), now())
     ON CONFLICT (turn_id, number) DO UPDATE
       SET state = 'running', run_id = $5, attempt = $6, token = $7, flushed = 0, seen_at = now(),
           retry_at = NULL,
           started_at = coalesce(mine.started_at, now()),
           name = CASE WHEN mine.kind = 'model' THEN $4 ELSE mine.name END,
           first_output_index = CASE WHEN mine.response_id IS NULL THEN $8
             ELSE mine.first_output_index END`,
    [
      fence.turnId,
      fence.step,
      claim.kind,
      turn.model,
      fence.runId,
      fence.attempt,
      claim.token,
      firstOutputIndex,
    ],
  );
}

/** What there is of a response that an earlier attempt of the step left with the provider. */
async function readKept(tx: Queryable, turn: Turn, before: StepRow): Promise<KeptResponse | null> {
  if (before.response_id === null) return null;
  const firstOutputIndex = before.first_output_index ?? 0;
  const events = await readAllEvents(tx, turn);
  return {
    responseId: before.response_id,
    cursor: before.cursor,
    firstOutputIndex,
    events: events.filter((event) => Number(event["output_index"]) >= firstOutputIndex),
  };
}

/** What the replaced attempt left open in the stream is closed [6], its call counts as wasted [7]. */
async function abandonPreviousAttempt(
  tx: Queryable,
  turn: Turn,
  step: number,
): Promise<TurnEvent[]> {
  const [recorded] = await Promise.all([readAllEvents(tx, turn), wasteOpenCalls(tx, turn, step)]);
  return closeOpenItems(recorded).events;
}

async function claimInside(
  tx: Transaction,
  claim: StepToClaim,
  replacedRunId: string | null,
): Promise<Claim | "other run"> {
  const { fence, kind, token } = claim;
  const askedAt = Date.now();
  const [taken, before, firstOutputIndex] = await Promise.all([
    takeTurn(tx, fence.turnId, fence.runId, replacedRunId),
    readStep(tx, fence),
    readOutputIndex(tx, fence.turnId),
  ]);
  if (taken === null) return explainUntaken(tx, fence);
  // A database that was slow has held up the sign of life, and whoever looked for it.
  if (isHeadStart(replacedRunId) && before?.state === "running" && before.was_seen) {
    throw new HeadStartLives();
  }
  if (replacedRunId !== null) abandonOtherRuns(tx, fence);
  if (before?.state === "finished") {
    return { outcome: "recorded", verdict: JSON.parse(before.verdict ?? "null") as StepVerdict };
  }
  if (before !== undefined && !mayTake(before, claim)) return { outcome: "fenced" };
  const { turn, isFirst } = taken;
  const isResent = before?.token === token;
  const isUntried = before === undefined || before.state === "scheduled";
  const wasRunning = !isUntried && !isResent;
  takeStep(tx, claim, turn, firstOutputIndex);
  const events = isFirst ? [lifecycleEvent(responseObject(turn))] : [];
  const kept = before === undefined ? null : await readKept(tx, turn, before);
  if (kind === "model" && wasRunning && kept === null) {
    events.push(...(await abandonPreviousAttempt(tx, turn, fence.step)));
  }
  const hasShown = kind === "model" && firstOutputIndex > 0;
  const opened = isResent || kept !== null ? await findOpenModelCall(tx, fence) : null;
  const openCall = () => opened ?? openModelCall(tx, turn, fence, firstOutputIndex);
  const modelCallId = kind === "model" ? openCall() : null;
  return {
    outcome: "claimed",
    turn,
    firstOutputIndex,
    shownIds: hasShown ? await readShownIds(tx, turn) : [],
    isUntried,
    wasRunning,
    call: before === undefined ? null : readCall(before),
    modelCallId,
    kept,
    events: await appendEvents(tx, turn, events),
    askedAt,
  };
}

async function explainUntaken(tx: Queryable, fence: Fence): Promise<Claim | "other run"> {
  const [row] = await tx.query<Pick<TurnRow, "status" | "run_id" | "failure">>(
    "SELECT status, run_id, failure FROM turns WHERE id = $1",
    [fence.turnId],
  );
  if (row === undefined) return { outcome: "unknown_turn" };
  if (isTerminal(row.status)) {
    const failure = row.failure === null ? null : (JSON.parse(row.failure) as Failure);
    return { outcome: "recorded", verdict: { next: "end", ...turnEnd(row.status, failure) } };
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
  const isLedByOther = isHeadStart(onRecord?.run_id ?? null);
  if (isLedByOther && (await readHeadStart(database, claim.fence.turnId)) !== null) {
    return { outcome: "head_started" };
  }
  const current = await currentRun(claim.fence.turnId);
  if (current !== claim.fence.runId) return { outcome: "fenced" };
  const replaced = onRecord?.run_id ?? null;
  try {
    const second = await database.transaction((tx) => claimInside(tx, claim, replaced));
    return second === "other run" ? { outcome: "fenced" } : second;
  } catch (error) {
    if (error instanceof HeadStartLives) return { outcome: "head_started" };
    throw error;
  }
}

/** A takeover rewrites all running step rows of its turn, so that their old owners are fenced. */
function abandonOtherRuns(tx: Transaction, fence: Fence): void {
  tx.send(
    `UPDATE steps SET state = 'abandoned'
     WHERE turn_id = $1 AND state = 'running' AND run_id <> $2`,
    [fence.turnId, fence.runId],
  );
}
