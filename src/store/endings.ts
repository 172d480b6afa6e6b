import { lifecycleEvent } from "../turn/events.ts";
import type { RecordedEvent } from "../turn/events.ts";
import { failure, Refusal } from "../turn/failures.ts";
import type { Failure } from "../turn/failures.ts";
import type { Item } from "../turn/items.ts";
import { unansweredCalls } from "../turn/pairs.ts";
import type { CallRef } from "../turn/pairs.ts";
import { checkAnswers } from "../turn/pendingCalls.ts";
import { responseObject } from "../turn/response.ts";
import { isTerminal } from "../turn/turn.ts";
import type { TerminalStatus, Turn } from "../turn/turn.ts";
import { turnEnd } from "../turn/verdict.ts";
import type { TurnEnd } from "../turn/verdict.ts";
import { one } from "./database.ts";
import type { Database, Queryable, Transaction } from "./database.ts";
import { appendEvents } from "./eventLog.ts";
import { closeModelCall } from "./modelCalls.ts";
import { finishStep, holdsStep, Replaced } from "./steps.ts";
import type { Fence } from "./fence.ts";
import { gatherOutcome, sumUsage } from "./turnOutcome.ts";
import type { LastStep } from "./turnOutcome.ts";
import { wasteOpenCalls } from "./wastedCalls.ts";
import { turnColumns, turnFromRow } from "./turns.ts";
import type { TurnRow } from "./turns.ts";

/** How a turn ends. */
export interface Ending {
  status: TerminalStatus;
  failure?: Failure;
  incompleteReason?: string;
}

/** Who may end a turn besides the owner of its last step. */
export interface EndingCondition {
  /** Only if this is still the run on record; `null`: only if no run has claimed the turn. */
  ifRunId?: string | null;
  /** Only if this attempt still has its step. */
  ifStep?: Fence;
}

/** What an ending did that others wait for. */
export interface Aftermath {
  /**
   * The turn itself, then those that were passed over when its conversation was granted, with the
   * events that nobody has been told of.
   */
  turns: { id: string; events: RecordedEvent[] }[];
  /** The turn that holds the conversation now; the caller starts its workflow. */
  granted: string | null;
  /** Responses that the provider keeps for the turn and may still run; the caller cancels them. */
  abandoned: string[];
}

export type Ended =
  | (TurnEnd & Aftermath & { outcome: "ended" })
  /** The turn had ended before: its status decides [1]. */
  | (TurnEnd & { outcome: "already"; granted: null })
  /** The writer has been replaced, or the condition does not hold; nothing was changed [3]. */
  | { outcome: "fenced"; granted: null };

export async function lockTurn(
  tx: Transaction,
  turnId: string,
  conversationId: string,
): Promise<Turn | undefined> {
  // The order of locks is conversation, turn, steps, heads; every transaction keeps it. A step that
  // is inserted under its fence refers to the turn, which only a stronger lock would hold up.
  tx.send("SELECT id FROM conversations WHERE id = $1 FOR NO KEY UPDATE", [conversationId]);
  const [row] = await tx.query<TurnRow>(
    `SELECT ${turnColumns} FROM turns WHERE id = $1 FOR NO KEY UPDATE`,
    [turnId],
  );
  return row === undefined ? undefined : turnFromRow(row);
}

/**
 * Fences every owner of a running step, because the turn ends without them.
 *
 * @returns the responses that the provider keeps for them.
 */
async function abandonSteps(tx: Transaction, turn: Turn): Promise<string[]> {
  const [rows] = await Promise.all([
    tx.query<{ response_id: string | null }>(
      `UPDATE steps SET state = 'abandoned'
       WHERE turn_id = $1 AND (state IN ('running', 'scheduled')
         OR state = 'abandoned' AND response_id IS NOT NULL)
       RETURNING response_id`,
      [turn.id],
    ),
    wasteOpenCalls(tx, turn),
  ]);
  return rows.flatMap((row) => row.response_id ?? []);
}

/** Calls that the client answers: a completed turn asks for it, an incomplete one has shown them. */
function pendingCalls(turn: Turn, items: readonly Item[]): CallRef[] {
  const calls = unansweredCalls(items);
  if (turn.status === "completed") return calls;
  return turn.status === "incomplete" ? calls.map((call) => ({ ...call, isOptional: true })) : [];
}

/** Items become part of the conversation only now; a failed turn leaves nothing behind. */
function appendItems(tx: Transaction, turn: Turn, items: readonly Item[]): void {
  if (turn.status === "failed") return;
  tx.send(
    `WITH conversation AS (
       UPDATE conversations SET next_position = next_position + cardinality($4::text[]),
         head_turn_id = $2, pending_calls = $6
       WHERE id = $1
       RETURNING next_position - cardinality($4::text[]) AS first, next_position
     ), turn AS (
       UPDATE turns SET end_position = conversation.next_position, pending_calls = $6
       FROM conversation WHERE turns.id = $2
     )
     INSERT INTO items (conversation_id, position, project_id, id, body)
     SELECT $1, conversation.first + number - 1, $3, item.id, item.body
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

function closeTurn(tx: Transaction, turn: Turn): void {
  tx.send(
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
 * Hands the conversation's lock to the next turn in the queue, those that interrupt first, or frees
 * it [2]. A turn that is not the holder (it was still queued) hands nothing on.
 */
async function grantNext(tx: Queryable, turn: Turn): Promise<string | null> {
  const [row] = await tx.query<{ holder_turn_id: string | null }>(
    `WITH next AS (
       SELECT id FROM turns WHERE conversation_id = $1 AND status = 'queued' AND id <> $2
       ORDER BY interrupts DESC, queue_position LIMIT 1
     ), granted AS (
       UPDATE turns SET status = 'admitted', base_position = next_position FROM next, conversations
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

interface EndingBy extends EndingCondition {
  lastStep?: LastStep;
}

/** Finishes the last step, if there is one, and takes every other running step from its owner. */
async function endSteps(tx: Transaction, turn: Turn, lastStep?: LastStep): Promise<string[]> {
  const isOnlyStep = lastStep?.fence.step === 1;
  const [, , abandoned] = await Promise.all([
    lastStep === undefined ? null : finishStep(tx, lastStep.fence, lastStep.result),
    lastStep?.modelCall ? closeModelCall(tx, lastStep.modelCall) : null,
    isOnlyStep ? [] : abandonSteps(tx, turn),
  ]);
  return abandoned;
}

export async function endInside(
  tx: Transaction,
  turnId: string,
  conversationId: string,
  ending: Ending,
  by: EndingBy,
): Promise<Ended> {
  const before = await lockTurn(tx, turnId, conversationId);
  if (before === undefined) return { outcome: "fenced", granted: null };
  if (isTerminal(before.status)) {
    return { outcome: "already", ...turnEnd(before.status, before.failure), granted: null };
  }
  if (by.ifRunId !== undefined && by.ifRunId !== before.runId) {
    return { outcome: "fenced", granted: null };
  }
  if (by.ifStep !== undefined && !(await holdsStep(tx, by.ifStep))) {
    return { outcome: "fenced", granted: null };
  }
  const [abandoned, usage, outcome] = await Promise.all([
    endSteps(tx, before, by.lastStep),
    sumUsage(tx, turnId),
    gatherOutcome(tx, before, ending.status, by.lastStep),
  ]);
  const turn: Turn = {
    ...before,
    status: ending.status,
    output: outcome.output,
    usage,
    failure: ending.failure ?? null,
    incompleteReason: ending.incompleteReason ?? null,
    endedAt: new Date(),
  };
  // A queued turn that ends must not get between another's question and answer.
  if (before.status !== "queued") {
    appendItems(tx, turn, [...before.request.input, ...outcome.items]);
  }
  closeTurn(tx, turn);
  const last = by.lastStep?.result;
  const events = [...(last?.events ?? []), ...outcome.events, lifecycleEvent(responseObject(turn))];
  const [next, recorded] = await Promise.all([
    grantNext(tx, turn),
    appendEvents(tx, turn, events, last?.nextOutputIndex),
  ]);
  const { turns, granted } = await passOver(tx, next, conversationId);
  return {
    outcome: "ended",
    ...turnEnd(ending.status, turn.failure),
    turns: [{ id: turn.id, events: recorded }, ...turns],
    granted,
    abandoned,
  };
}

/** Why a turn that was granted its conversation does not run; `null` when it does. */
async function reasonToPassOver(tx: Queryable, turnId: string): Promise<Ending | null> {
  const row = await one(
    tx.query<{ pending_calls: string; request: string; interrupts: boolean; newer: boolean }>(
      `SELECT conversations.pending_calls, turns.request, turns.interrupts,
         EXISTS (SELECT FROM turns AS newer WHERE newer.conversation_id = conversations.id
           AND newer.status = 'queued' AND newer.interrupts) AS newer
       FROM turns JOIN conversations ON conversations.id = turns.conversation_id
       WHERE turns.id = $1`,
      [turnId],
    ),
  );
  // A newer message interrupts this one before it has begun; its input stays.
  if (row.newer) return { status: "cancelled" };
  const pending = JSON.parse(row.pending_calls) as CallRef[];
  try {
    checkAnswers(pending, JSON.parse(row.request) as Turn["request"], row.interrupts);
    return null;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const reason = failure("unanswered_calls", error.message, { code: error.code });
    return { status: "failed", failure: reason };
  }
}

/**
 * A turn was queued before anybody knew which calls it would have to answer. If it does not answer
 * them it fails as it would have at admission [9], and the next one is granted; so it is when a newer
 * turn interrupts it.
 *
 * @returns the turns that ended so, and the one that holds the conversation in the end.
 */
async function passOver(
  tx: Transaction,
  turnId: string | null,
  conversationId: string,
): Promise<Pick<Aftermath, "turns" | "granted">> {
  if (turnId === null) return { turns: [], granted: null };
  const ending = await reasonToPassOver(tx, turnId);
  if (ending === null) return { turns: [], granted: turnId };
  const ended = await endInside(tx, turnId, conversationId, ending, {});
  return ended.outcome === "ended" ? ended : { turns: [], granted: ended.granted };
}

/**
 * Ends a turn in one transaction [1]: its last step, items, usage, status, the conversation's lock
 * and the last event, all or none. A turn that has ended stays as it is.
 *
 * @returns with an {@link Aftermath}, of which the caller tells.
 */
export function endTurn(
  database: Database,
  turn: { id: string; conversationId: string },
  ending: Ending,
  by: EndingBy = {},
): Promise<Ended> {
  return database
    .transaction((tx) => endInside(tx, turn.id, turn.conversationId, ending, by))
    .catch((error: unknown) => {
      if (error instanceof Replaced) return { outcome: "fenced", granted: null };
      throw error;
    });
}
