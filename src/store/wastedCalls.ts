import { estimateTokens, estimateUsage } from "../turn/estimate.ts";
import { closeOpenItems } from "../turn/openItems.ts";
import type { FailureClass } from "../turn/failures.ts";
import type { TokenCounts, Turn } from "../turn/turn.ts";
import { readAgentVersion } from "./agents.ts";
import { readHistory } from "./conversations.ts";
import type { Queryable } from "./database.ts";
import { readAllEvents } from "./eventLog.ts";
import { closeModelCall } from "./modelCalls.ts";
import type { ModelCallEnd } from "./modelCalls.ts";
import { readFinishedSteps } from "./steps.ts";

/** Failures by which a provider says that it did not take the call: nothing was read or written. */
const untakenClasses: ReadonlySet<FailureClass> = new Set([
  "rate_limited",
  "quota_exhausted",
  "overloaded",
  "server_error",
  "context_overflow",
  "item_not_found",
  "previous_response_not_found",
  "invalid_request",
  "model_not_found",
  "authentication",
  "content_refused",
]);

const nothing: TokenCounts = {
  inputTokens: 0,
  cachedTokens: 0,
  cacheWriteTokens: 0,
  outputTokens: 0,
  reasoningTokens: 0,
};

/** What its owner knows of a call that it gives up. */
export interface GivenUpCall {
  end: ModelCallEnd;
  /** Whether the provider may have had a whole request. */
  isWhole: boolean;
  /** About how many tokens the request had; `null`: what is on record tells. */
  inputTokens: (() => number) | null;
}

interface UnmeasuredCall {
  id: string;
  model: string;
  firstOutputIndex: number;
}

const unmeasuredColumns = `id, model, coalesce(first_output_index, 0) AS "firstOutputIndex"`;

/**
 * Closes the row of a call that its owner gives up. Where its usage never arrived, it is estimated:
 * as nothing when the provider refused the call or never had the whole of it, and from the request and
 * what was received when an answer had begun. Otherwise it stays unknown: the request may not have
 * arrived.
 */
export async function giveUpCall(
  tx: Queryable,
  turn: Turn,
  { end, isWhole, inputTokens }: GivenUpCall,
): Promise<void> {
  await closeModelCall(tx, end);
  if (end.tokens !== null) return;
  const isUntaken = !isWhole || (end.failure !== null && untakenClasses.has(end.failure.class));
  if (end.responseId === null && isUntaken) return writeEstimate(tx, end.id, nothing, 0);
  if (end.responseId === null && end.requestId === null) return;
  const calls = await tx.query<UnmeasuredCall & { endIndex: number | null }>(
    `SELECT ${unmeasuredColumns}, (
       SELECT min(first_output_index) FROM model_calls later
       WHERE later.turn_id = call.turn_id AND later.started_at > call.started_at) AS "endIndex"
     FROM model_calls call WHERE id = $1 AND certainty = 'unknown'`,
    [end.id],
  );
  for (const { endIndex, ...call } of calls) {
    // Where the owner has been replaced meanwhile, what follows is another call's.
    const before = endIndex ?? Number.POSITIVE_INFINITY;
    const written = writtenBetween(call.firstOutputIndex, before, await readAllEvents(tx, turn));
    const input = inputTokens?.() ?? (await readInputTokens(tx, turn));
    await writePriced(tx, call, estimateUsage(input, written));
  }
}

/**
 * Calls whose owner is gone cannot be used any more. They are estimated from what is on record of
 * them; a call of which no event is on record stays unknown.
 */
export async function wasteOpenCalls(tx: Queryable, turn: Turn, step?: number): Promise<void> {
  const calls = await tx.query<UnmeasuredCall>(
    `UPDATE model_calls SET outcome = 'wasted', ended_at = now(),
       response_id = coalesce(response_id, (SELECT steps.response_id FROM steps
         WHERE steps.turn_id = $1 AND steps.number = model_calls.step))
     WHERE turn_id = $1 AND outcome = 'open' AND ($2::int IS NULL OR step = $2)
     RETURNING ${unmeasuredColumns}`,
    [turn.id, step ?? null],
  );
  if (calls.length === 0) return;
  const events = await readAllEvents(tx, turn);
  for (const call of calls) {
    const written = writtenBetween(call.firstOutputIndex, Number.POSITIVE_INFINITY, events);
    if (written.length === 0) continue;
    await writePriced(tx, call, estimateUsage(await readInputTokens(tx, turn), written));
  }
}

/** The output items from a place on and before another one, as far as the events tell them. */
function writtenBetween(
  firstIndex: number,
  endIndex: number,
  events: Awaited<ReturnType<typeof readAllEvents>>,
): Record<string, unknown>[] {
  const finished = events
    .filter((event) => event.type === "response.output_item.done")
    .map((event) => ({
      index: event["output_index"] as number,
      item: event["item"] as Record<string, unknown>,
    }));
  return [...finished, ...closeOpenItems(events).output]
    .filter(({ index }) => index >= firstIndex && index < endIndex)
    .map(({ item }) => item);
}

/** Without the definitions of the agent's own tools, which only workers have. */
async function readInputTokens(tx: Queryable, turn: Turn): Promise<number> {
  const [history, steps, agent] = await Promise.all([
    readHistory(tx, turn.project, turn.conversationId),
    readFinishedSteps(tx, turn.id),
    readAgentVersion(tx, turn.agent, turn.agentVersion),
  ]);
  const instructions = turn.request.instructions ?? agent?.instructions ?? null;
  const made = steps.flatMap((step) => step.items);
  return estimateTokens(instructions, turn.request.tools, history, turn.request.input, made);
}

async function writePriced(
  tx: Queryable,
  call: { id: string; model: string },
  tokens: TokenCounts,
): Promise<void> {
  // Loaded here, because only workers have the price list in memory anyway.
  const { priceOf } = await import("../turn/prices.ts");
  await writeEstimate(tx, call.id, tokens, priceOf(call.model, tokens));
}

async function writeEstimate(
  tx: Queryable,
  id: string,
  tokens: TokenCounts,
  costUsd: number | null,
): Promise<void> {
  await tx.query(
    `UPDATE model_calls SET certainty = 'estimated', input_tokens = $2, cached_tokens = $3,
       cache_write_tokens = $4, output_tokens = $5, reasoning_tokens = $6, cost_usd = $7
     WHERE id = $1 AND certainty = 'unknown'`,
    [
      id,
      tokens.inputTokens,
      tokens.cachedTokens,
      tokens.cacheWriteTokens,
      tokens.outputTokens,
      tokens.reasoningTokens,
      costUsd,
    ],
  );
}
