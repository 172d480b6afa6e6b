import type { Degradation, Turn, TokenCounts } from "../turn/turn.ts";
import type { Database, Queryable, Transaction } from "./database.ts";
import type { Fence } from "./fence.ts";
import { openModelCall } from "./modelCalls.ts";
import { holdsStep, Replaced } from "./steps.ts";
import { giveUpCall, wasteOpenCalls } from "./wastedCalls.ts";
import type { GivenUpCall } from "./wastedCalls.ts";

function forgetResponse(tx: Transaction, fence: Fence, firstOutputIndex: number | null): void {
  tx.send(
    `UPDATE steps SET response_id = NULL, cursor = NULL,
       first_output_index = coalesce($5, first_output_index)
     WHERE turn_id = $1 AND number = $2 AND run_id = $3 AND attempt = $4 AND state = 'running'`,
    [fence.turnId, fence.step, fence.runId, fence.attempt, firstOutputIndex],
  );
}

/**
 * Closes a call whose response nobody will go on with, so that no takeover tries to.
 *
 * @returns false, and changes nothing, when this attempt has lost its step: the response is its
 *   successor's [3].
 */
export function giveUpResponse(
  database: Database,
  turn: Turn,
  fence: Fence,
  call: GivenUpCall,
): Promise<boolean> {
  return database.transaction(async (tx) => {
    if (!(await holdsStep(tx, fence))) return false;
    forgetResponse(tx, fence, null);
    await giveUpCall(tx, turn, call);
    return true;
  });
}

/**
 * Opens another call in the place of one whose response the provider has no more; that one counts as
 * wasted [7].
 *
 * @param firstOutputIndex the place of the new call's first item.
 * @returns the ledger's row of the new call.
 * @throws Replaced when this attempt has lost its step.
 */
export function replaceResponse(
  database: Database,
  turn: Turn,
  fence: Fence,
  firstOutputIndex: number,
): Promise<string> {
  return database.transaction(async (tx) => {
    if (!(await holdsStep(tx, fence))) throw new Replaced();
    await wasteOpenCalls(tx, turn, fence.step);
    forgetResponse(tx, fence, firstOutputIndex);
    return openModelCall(tx, turn, fence, firstOutputIndex);
  });
}

/**
 * Writes down that a turn goes on with another model, or with its agent's static answer. Nothing
 * happens where this attempt has lost its step [3].
 */
export function degradeTurn(
  database: Database,
  fence: Fence,
  degraded: Degradation,
  model: string,
): Promise<void> {
  return database.transaction(async (tx) => {
    // The order of locks is turn, step.
    await tx.query("SELECT id FROM turns WHERE id = $1 FOR NO KEY UPDATE", [fence.turnId]);
    if (!(await holdsStep(tx, fence))) return;
    tx.send(
      `UPDATE turns SET degraded = $2, model = $3,
         original_model = CASE WHEN model = $3 THEN original_model
           ELSE coalesce(original_model, model) END
       WHERE id = $1`,
      [fence.turnId, degraded, model],
    );
  });
}

/** Completes the ledger with what a response had cost by the time that it was cancelled. */
export async function noteCancelledCost(
  queryable: Queryable,
  call: { turnId: string; responseId: string },
  tokens: TokenCounts,
  costUsd: number | null,
): Promise<void> {
  await queryable.query(
    `UPDATE model_calls SET input_tokens = $3, cached_tokens = $4, cache_write_tokens = $5,
       output_tokens = $6, reasoning_tokens = $7, cost_usd = $8, certainty = 'exact'
     WHERE turn_id = $1 AND response_id = $2 AND outcome = 'wasted'`,
    [
      call.turnId,
      call.responseId,
      tokens.inputTokens,
      tokens.cachedTokens,
      tokens.cacheWriteTokens,
      tokens.outputTokens,
      tokens.reasoningTokens,
      costUsd,
    ],
  );
}
