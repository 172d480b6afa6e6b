import type { ModelCallEnd } from "../store/modelCalls.ts";
import { Replaced, storeStep } from "../store/steps.ts";
import type { Fence } from "../store/fence.ts";
import type { StepResult } from "../store/steps.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict } from "../turn/verdict.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { retryLater } from "./stepContext.ts";

/**
 * Ends a step after which the turn goes on, and tells subscribers.
 *
 * @throws a retryable failure when this writer has been replaced, or an earlier send has stored the
 *   step: the retry's claim tells which.
 */
export async function finishStep(
  parts: Parts,
  turn: Turn,
  step: { fence: Fence; result: StepResult; modelCall: ModelCallEnd | null },
  signal: AbortSignal,
): Promise<StepVerdict> {
  const { fence, result, modelCall } = step;
  try {
    const store = () => storeStep(parts.database, turn, fence, result, modelCall);
    parts.announce(turn.id, await persist(store, signal));
    return result.verdict;
  } catch (error) {
    throw error instanceof Replaced ? retryLater("fenced") : error;
  }
}
