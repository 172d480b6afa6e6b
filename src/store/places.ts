import { Refusal } from "../turn/failures.ts";
import { newId } from "../turn/ids.ts";
import type { CallRef } from "../turn/pairs.ts";
import type { TurnReplay } from "../turn/replay.ts";
import type { TurnRequest } from "../turn/request.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import type { Queryable, Transaction } from "./database.ts";

/**
 * What to do with a turn whose conversation another turn holds: refuse it, let it wait, or cancel
 * the other one for it.
 */
export type BusyMode = "reject" | "queue" | "interrupt";

/** Where a turn runs. */
export interface Place {
  conversationId: string;
  holder: string | null;
  pendingCalls: CallRef[];
  /** Of a replay. */
  replay?: TurnReplay;
}

interface LockedConversation {
  next_position: number;
  holder_turn_id: string | null;
  head_turn_id: string | null;
  pending_calls: string;
}

export async function lockConversation(
  tx: Queryable,
  project: string,
  conversationId: string,
): Promise<LockedConversation | undefined> {
  const [row] = await tx.query<LockedConversation>(
    `SELECT next_position, holder_turn_id, head_turn_id, pending_calls FROM conversations
     WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL FOR UPDATE`,
    [conversationId, project],
  );
  return row;
}

export function placeIn(conversationId: string, locked: LockedConversation): Place {
  return {
    conversationId,
    holder: locked.holder_turn_id,
    pendingCalls: JSON.parse(locked.pending_calls) as CallRef[],
  };
}

async function placeInNamed(tx: Queryable, project: string, id: string): Promise<Place> {
  const locked = await lockConversation(tx, project, id);
  if (locked === undefined) {
    throw new Refusal("conversation_not_found", `Conversation '${id}' not found.`, "conversation");
  }
  return placeIn(id, locked);
}

function placeInNew(tx: Transaction, project: string): Place {
  const id = newId("conversation");
  tx.send("INSERT INTO conversations (id, project_id) VALUES ($1, $2)", [id, project]);
  return { conversationId: id, holder: null, pendingCalls: [] };
}

interface PreviousTurn {
  status: Turn["status"];
  conversation_id: string;
  end_position: number | null;
  pending_calls: string;
}

async function readPrevious(tx: Queryable, project: string, turnId: string): Promise<PreviousTurn> {
  const [row] = await tx.query<PreviousTurn>(
    `SELECT status, conversation_id, end_position, pending_calls FROM turns
     WHERE id = $1 AND project_id = $2 AND hidden_at IS NULL`,
    [turnId, project],
  );
  if (row !== undefined) return row;
  throw new Refusal(
    "previous_response_not_found",
    `Previous response with id '${turnId}' not found.`,
    "previous_response_id",
  );
}

/**
 * A turn after the head continues its conversation, and so does one that interrupts the turn that it
 * follows; after any other one it gets a fork.
 */
async function placeAfter(
  tx: Queryable,
  project: string,
  previousId: string,
  whenBusy: BusyMode,
): Promise<Place> {
  const { conversation_id: conversationId } = await readPrevious(tx, project, previousId);
  const locked = await lockConversation(tx, project, conversationId);
  // Read again under the lock: the previous turn may have ended meanwhile.
  const previous = await readPrevious(tx, project, previousId);
  if (!isTerminal(previous.status)) {
    const mayInterrupt = whenBusy === "interrupt" && locked?.holder_turn_id === previousId;
    if (!mayInterrupt) throw busy(previousId);
    return placeIn(conversationId, locked);
  }
  if (locked === undefined || previous.end_position === null) {
    throw new Refusal(
      "previous_response_unusable",
      `The response '${previousId}' failed, never ran or was deleted, so nothing can follow it.`,
      "previous_response_id",
    );
  }
  if (locked.head_turn_id === previousId) {
    if (locked.holder_turn_id !== null) throw busy(locked.holder_turn_id);
    return placeIn(conversationId, locked);
  }
  const fork = newId("conversation");
  await tx.query(
    `INSERT INTO conversations
       (id, project_id, base_conversation_id, base_position, next_position, pending_calls)
     VALUES ($1, $2, $3, $4, $4, $5)`,
    [fork, project, conversationId, previous.end_position, previous.pending_calls],
  );
  return {
    conversationId: fork,
    holder: null,
    pendingCalls: JSON.parse(previous.pending_calls) as CallRef[],
  };
}

export function busy(holder: string): Refusal {
  return new Refusal(
    "conversation_busy",
    `Another response is running in this conversation: ${holder}. Wait for its end, cancel it, or ask to be queued or to interrupt.`,
    "conversation",
  );
}

/**
 * Finds the conversation that a request means, and locks it.
 *
 * @throws Refusal `conversation_busy`, `conversation_not_found`, `previous_response_not_found` or
 *   `previous_response_unusable`.
 */
export async function findPlace(
  tx: Transaction,
  admission: { project: string; request: TurnRequest; whenBusy: BusyMode },
): Promise<Place> {
  const { conversation, previousTurnId } = admission.request;
  if (conversation !== null) return placeInNamed(tx, admission.project, conversation);
  if (previousTurnId !== null)
    return placeAfter(tx, admission.project, previousTurnId, admission.whenBusy);
  return placeInNew(tx, admission.project);
}
