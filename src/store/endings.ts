import { lifecycleEvent } from "../turn/events.ts";
import type { OutputEntry, TurnEvent } from "../turn/events.ts";
import type { Failure } from "../turn/failures.ts";
import { isFunctionCall, unansweredCalls } from "../turn/items.ts";
import type { Item } from "../turn/items.ts";
import { closeOpenItems } from "../turn/openItems.ts";
import { responseObject } from "../turn/response.ts";
import { isTerminal } from "../turn/turn.ts";
import type { TerminalStatus, Turn, Usage } from "../turn/turn.ts";
import { one } from "./database.ts";
import type { Database, Queryable } from "./database.ts";
import { appendEvents, readAllEvents } from "./eventLog.ts";
import { closeModelCall, wasteOpenCalls } from "./modelCalls.ts";
import type { ModelCallEnd } from "./modelCalls.ts";
import { finishStep, readFinishedSteps } from "./steps.ts";
import type { Fence, FinishedStep, StepResult } from "./steps.ts";
import { turnColumns, turnFromRow } from "./turns.ts";
import type { TurnRow } from "./turns.ts";

/** How a turn ends. */
export interface Ending {
  status: TerminalStatus;
  failure?: Failure;
  incompleteReason?: string;
}

/** The last step of a turn, which ends in the same transaction as the turn. */
export interface LastStep {
  fence: Fence;
  result: StepResult;
  modelCall: ModelCallEnd | null;
}

/** Who may end a turn besides the owner of its last step. */
export interface EndingCondition {
  /** Only if this is still the run on record; `null`: only if no run has claimed the turn. */
  ifRunId?: string | null;
}

export type Ended =
  | { outcome: "ended"; status: TerminalStatus; granted: string | null }
  /** The turn had ended before: its status decides [1]. */
  | { outcome: "already"; status: TerminalStatus; granted: null }
  /** The writer has been replaced, or the condition does not hold; nothing was changed [3]. */
  | { outcome: "fenced"; granted: null };

async function lockTurn(
  tx: Queryable,
  turnId: string,
  conversationId: string,
): Promise<Turn | undefined> {
  // The order of locks is conversation, turn, steps, heads; every transaction keeps it.
  await tx.query("SELECT id FROM conversations WHERE id = $1 FOR UPDATE", [conversationId]);
  const [row] = await tx.query<TurnRow>(
    `SELECT ${turnColumns} FROM turns WHERE id = $1 FOR UPDATE`,
    [turnId],
  );
  return row === undefined ? undefined : turnFromRow(row);
}

/** Fences every owner of a running step, because the turn ends without them. */
async function abandonSteps(tx: Queryable, turnId: string): Promise<void> {
  await tx.query(
    `UPDATE steps SET state = 'abandoned'
     WHERE turn_id = $1 AND state IN ('running', 'scheduled')`,
    [turnId],
  );
  await wasteOpenCalls(tx, turnId);
}

/** A partial answer is kept when its reader saw something of it. */
function isWorthKeeping(entry: OutputEntry): boolean {
  if (entry.item["type"] !== "message") return false;
  const content = entry.item["content"] as { text?: string }[];
  return content.some((part) => (part.text ?? "") !== "");
}

interface Outcome {
  items: Item[];
  output: unknown[];
  events: TurnEvent[];
}

async function gatherOutcome(
  tx: Queryable,
  turn: Turn,
  ending: Ending,
  lastStep: LastStep | undefined,
): Promise<Outcome> {
  const isOnlyStep = lastStep?.fence.step === 1;
  const steps: FinishedStep[] = isOnlyStep
    ? [{ number: 1, kind: "model", ...lastStep.result }]
    : await readFinishedSteps(tx, turn.id);
  const left =
    ending.status === "completed"
      ? { events: [], output: [] }
      : closeOpenItems(await readAllEvents(tx, turn));
  const kept = ending.status === "failed" ? [] : left.output.filter(isWorthKeeping);
  const entries = [...steps.flatMap((step) => step.output), ...kept];
  return {
    items: [...steps.flatMap((step) => step.items), ...kept.map((entry) => entry.item as Item)],
    output: entries.sort((left, right) => left.index - right.index).map((entry) => entry.item),
    events: left.events,
  };
}

async function sumUsage(tx: Queryable, turnId: string): Promise<Usage | null> {
  const row = await one(
    tx.query<Record<"calls" | "input" | "cached" | "output" | "reasoning", number>>(
      `SELECT count(*) AS calls, coalesce(sum(input_tokens), 0)::bigint AS input,
         coalesce(sum(cached_tokens), 0)::bigint AS cached,
         coalesce(sum(output_tokens), 0)::bigint AS output,
         coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning
       FROM model_calls WHERE turn_id = $1 AND outcome = 'used' AND input_tokens IS NOT NULL`,
      [turnId],
    ),
  );
  if (row.calls === 0) return null;
  return {
    input_tokens: row.input,
    input_tokens_details: { cached_tokens: row.cached },
    output_tokens: row.output,
    output_tokens_details: { reasoning_tokens: row.reasoning },
    total_tokens: row.input + row.output,
  };
}

/** Calls that wait for the client's answer: only a completed turn asks for answers. */
function pendingCalls(turn: Turn, items: readonly Item[]): string[] {
  if (turn.status !== "completed") return [];
  return unansweredCalls(
    items.filter((item) => isFunctionCall(item) || item.type === "function_call_output"),
  ).map((call) => call.call_id);
}

/** Items become part of the conversation only now; a failed turn leaves nothing behind. */
async function appendItems(tx: Queryable, turn: Turn, items: readonly Item[]): Promise<void> {
  if (turn.status === "failed") return;
  await tx.query(
    `WITH conversation AS (
       UPDATE conversations SET next_position = next_position + cardinality($4::text[]),
         head_turn_id = $2, pending_calls = $6
       WHERE id = $1
       RETURNING next_position - cardinality($4::text[]) AS first, next_position
     ), turn AS (
       UPDATE turns SET end_position = conversation.next_position, pending_calls = $6
       FROM conversation WHERE turns.id = $2
     )
     INSERT INTO items (conversation_id, position, project_id, id, turn_id, body)
     SELECT $1, conversation.first + number - 1, $3, item.id, $2, item.body
     FROM conversation, unnest($4::text[], $5::text[]) WITH ORDINALITY AS item (id, body, number)`,
    [
      turn.conversationId,
      turn.id,
      turn.project,
      items.map((item) => item.id),
      items.map((item) => JSON.stringify(item)),
      JSON.stringify(pendingCalls(turn, items)),
    ],
  );
}

async function closeTurn(tx: Queryable, turn: Turn): Promise<void> {
  await tx.query(
    `UPDATE turns SET status = $2, output = $3, usage = $4, failure = $5, incomplete_reason = $6,
       ended_at = $7
     WHERE id = $1`,
    [
      turn.id,
      turn.status,
      JSON.stringify(turn.output ?? []),
      turn.usage === null ? null : JSON.stringify(turn.usage),
      turn.failure === null ? null : JSON.stringify(turn.failure),
      turn.incompleteReason,
      turn.endedAt,
    ],
  );
}

/**
 * Hands the conversation's lock to the next turn in the queue, or frees it [2]. A turn that is not
 * the holder (it was still queued) hands nothing on.
 */
async function grantNext(tx: Queryable, turn: Turn): Promise<string | null> {
  const [row] = await tx.query<{ holder_turn_id: string | null }>(
    `WITH next AS (
       SELECT id FROM turns WHERE conversation_id = $1 AND status = 'queued' AND id <> $2
       ORDER BY queue_position LIMIT 1
     ), granted AS (
       UPDATE turns SET status = 'admitted' FROM next, conversations
       WHERE turns.id = next.id AND conversations.id = $1 AND conversations.holder_turn_id = $2
       RETURNING turns.id
     )
     UPDATE conversations SET holder_turn_id = (SELECT id FROM granted)
     WHERE id = $1 AND holder_turn_id = $2
     RETURNING holder_turn_id`,
    [turn.conversationId, turn.id],
  );
  return row?.holder_turn_id ?? null;
}

async function endInside(
  tx: Queryable,
  turnId: string,
  conversationId: string,
  ending: Ending,
  lastStep: LastStep | undefined,
  condition: EndingCondition,
): Promise<Ended> {
  const before = await lockTurn(tx, turnId, conversationId);
  if (before === undefined) return { outcome: "fenced", granted: null };
  if (isTerminal(before.status))
    return { outcome: "already", status: before.status, granted: null };
  if (condition.ifRunId !== undefined && condition.ifRunId !== before.runId) {
    return { outcome: "fenced", granted: null };
  }
  if (lastStep !== undefined) {
    if (!(await finishStep(tx, before, lastStep.fence, lastStep.result))) {
      return { outcome: "fenced", granted: null };
    }
    if (lastStep.modelCall !== null) await closeModelCall(tx, lastStep.modelCall);
  }
  if (lastStep === undefined || lastStep.fence.step > 1) await abandonSteps(tx, turnId);
  const { items, output, events } = await gatherOutcome(tx, before, ending, lastStep);
  const turn: Turn = {
    ...before,
    status: ending.status,
    output,
    usage: await sumUsage(tx, turnId),
    failure: ending.failure ?? null,
    incompleteReason: ending.incompleteReason ?? null,
    endedAt: new Date(),
  };
  // A queued turn that ends must not get between another's question and answer.
  if (before.status !== "queued") await appendItems(tx, turn, [...before.request.input, ...items]);
  await closeTurn(tx, turn);
  const granted = await grantNext(tx, turn);
  await appendEvents(tx, turn, [...events, lifecycleEvent(responseObject(turn))]);
  return { outcome: "ended", status: turn.status as TerminalStatus, granted };
}

/**
 * Ends a turn in one transaction [1]: its last step, items, usage, status, the conversation's lock
 * and the last event, all or none. A turn that has ended stays as it is.
 *
 * @returns with `granted`, the turn that holds the conversation now; the caller starts its workflow.
 */
export function endTurn(
  database: Database,
  turn: { id: string; conversationId: string },
  ending: Ending,
  by: { lastStep?: LastStep } & EndingCondition = {},
): Promise<Ended> {
  return database.transaction((tx) =>
    endInside(tx, turn.id, turn.conversationId, ending, by.lastStep, by),
  );
}

export type CancelOutcome =
  | { outcome: "ended"; status: TerminalStatus; granted: string | null }
  /** A worker or the workflow will end it. */
  | { outcome: "requested" };

/**
 * Asks for a turn's end [12]. A turn that no worker has claimed ends at once; for others the flag is
 * set, which claims, flushes and the owning worker read.
 */
export function cancelTurn(
  database: Database,
  turn: { id: string; conversationId: string },
): Promise<CancelOutcome> {
  return database.transaction(async (tx) => {
    const before = await lockTurn(tx, turn.id, turn.conversationId);
    if (before === undefined) return { outcome: "requested" };
    if (isTerminal(before.status)) {
      return { outcome: "ended", status: before.status, granted: null };
    }
    if (before.runId === null) {
      const ended = await endInside(
        tx,
        turn.id,
        turn.conversationId,
        { status: "cancelled" },
        undefined,
        {},
      );
      if (ended.outcome !== "fenced") return { ...ended, outcome: "ended" };
    }
    await tx.query(
      "UPDATE turns SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = $1",
      [turn.id],
    );
    return { outcome: "requested" };
  });
}
