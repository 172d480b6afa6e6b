import type { OutputEntry, TurnEvent } from "../turn/events.ts";
import type { Item } from "../turn/items.ts";
import { closeOpenItems, finishedMessages, partialAnswers } from "../turn/openItems.ts";
import type { ClosedItems } from "../turn/openItems.ts";
import type { TerminalStatus, Turn, Usage } from "../turn/turn.ts";
import { one } from "./database.ts";
import type { Queryable } from "./database.ts";
import { readAllEvents } from "./eventLog.ts";
import type { Fence } from "./fence.ts";
import type { ModelCallEnd } from "./modelCalls.ts";
import { readFinishedSteps } from "./steps.ts";
import type { FinishedStep, StepResult } from "./steps.ts";

/** The last step of a turn, which ends in the same transaction as the turn. */
export interface LastStep {
  fence: Fence;
  result: StepResult;
  modelCall: ModelCallEnd | null;
}

/** What a turn leaves behind when it ends. */
export interface TurnOutcome {
  items: Item[];
  output: unknown[];
  events: TurnEvent[];
}

/** Gathers what finished steps and, save in a completed turn, abandoned ones have produced. */
export async function gatherOutcome(
  tx: Queryable,
  turn: Turn,
  status: TerminalStatus,
  lastStep: LastStep | undefined,
): Promise<TurnOutcome> {
  const isOnlyStep = lastStep?.fence.step === 1;
  const steps: Pick<FinishedStep, "items" | "output">[] = isOnlyStep
    ? [lastStep.result]
    : await readFinishedSteps(tx, turn.id);
  const events =
    status === "completed"
      ? []
      : [...(await readAllEvents(tx, turn)), ...(lastStep?.result.events ?? [])];
  const left = closeOpenItems(events);
  const shown = messagesShown(events, left);
  const kept = status === "failed" ? [] : await ofLastCall(tx, turn.id, shown);
  const entries = [...steps.flatMap((step) => step.output), ...kept];
  return {
    items: [...steps.flatMap((step) => step.items), ...kept.map((entry) => entry.item as Item)],
    output: entries.sort((left, right) => left.index - right.index).map((entry) => entry.item),
    events: left.events,
  };
}

/** The messages with text that events have shown, whole or in part; `left`: what they left open. */
function messagesShown(events: readonly TurnEvent[], left: ClosedItems): OutputEntry[] {
  return [...finishedMessages(events), ...partialAnswers(left)];
}

/** Whether a turn's stream has shown any text of an answer, also of one that was given up. */
export async function hasShownText(queryable: Queryable, turn: Turn): Promise<boolean> {
  const events = await readAllEvents(queryable, turn);
  return messagesShown(events, closeOpenItems(events)).length > 0;
}

/**
 * Of the messages that a turn has shown, those of the last call to show any, where it belongs to the
 * step that the turn ends in the middle of. An attempt that has shown nothing yet takes none away.
 */
async function ofLastCall(
  tx: Queryable,
  turnId: string,
  shown: readonly OutputEntry[],
): Promise<OutputEntry[]> {
  if (shown.length === 0) return [];
  // A static answer has no row in the ledger; its step has its place.
  const row = await one(
    tx.query<{ place: number | null }>(
      `WITH step AS (
         SELECT number, first_output_index FROM steps
         WHERE turn_id = $1 AND kind = 'model' AND state <> 'finished'
       ), calls AS (
         SELECT first_output_index FROM step
         UNION ALL
         SELECT call.first_output_index FROM step JOIN model_calls call
           ON call.turn_id = $1 AND call.step = step.number
       )
       SELECT max(first_output_index) AS place FROM calls WHERE first_output_index <= $2`,
      [turnId, Math.max(...shown.map(({ index }) => index))],
    ),
  );
  const { place } = row;
  return place === null ? [] : shown.filter(({ index }) => index >= place);
}

/** The tokens of the turn's calls that were used; `null`: no provider said any. */
export async function sumUsage(tx: Queryable, turnId: string): Promise<Usage | null> {
  const row = await one(
    tx.query<Record<"calls" | "input" | "cached" | "written" | "output" | "reasoning", number>>(
      `SELECT count(*) AS calls, coalesce(sum(input_tokens), 0)::bigint AS input,
         coalesce(sum(cached_tokens), 0)::bigint AS cached,
         coalesce(sum(cache_write_tokens), 0)::bigint AS written,
         coalesce(sum(output_tokens), 0)::bigint AS output,
         coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning
       FROM model_calls WHERE turn_id = $1 AND outcome = 'used' AND certainty = 'exact'`,
      [turnId],
    ),
  );
  if (row.calls === 0) return null;
  return {
    input_tokens: row.input,
    input_tokens_details: { cached_tokens: row.cached, cache_write_tokens: row.written },
    output_tokens: row.output,
    output_tokens_details: { reasoning_tokens: row.reasoning },
    total_tokens: row.input + row.output,
  };
}
