import type { Agent, Fallback } from "./agent.ts";
import { failureRules } from "./failures.ts";
import type { Failure, FailureClass } from "./failures.ts";
import type { Turn } from "./turn.ts";

/** Failures after which another model may do better, beside all that are retried. */
const otherModelClasses: ReadonlySet<FailureClass> = new Set([
  "quota_exhausted",
  "model_not_found",
  "context_overflow",
]);

/** Whether a failure leads to a fallback whose definition does not say which ones do. */
function leadsElsewhere(failureClass: FailureClass): boolean {
  return failureRules[failureClass].action === "retry" || otherModelClasses.has(failureClass);
}

const defaultAfterFailures = 2;

/** The second of these calls went without reasoning items; a third would be the same again. */
function isInVain(failed: readonly FailedCall[], cause: Failure): boolean {
  const alike = failed.filter((call) => call.class === cause.class);
  return cause.class === "item_not_found" && alike.length > 1;
}

/** A failed call on record. */
export interface FailedCall {
  model: string;
  class: FailureClass;
}

/** What follows a failed call. */
export type NextTry =
  | { next: "same_model"; failures: number }
  | { next: "fallback"; model: string }
  | { next: "static_answer" }
  | { next: "fail" };

/** The next model of the chain that is for failures of this class. */
export function fallbackFor(
  agent: Agent,
  turn: Pick<Turn, "model" | "originalModel">,
  failureClass: FailureClass,
): Fallback | undefined {
  const chain = [turn.originalModel ?? turn.model, ...agent.fallbacks.map((each) => each.model)];
  const behind = agent.fallbacks.slice(chain.lastIndexOf(turn.model));
  return behind.find(({ on }) => on?.includes(failureClass) ?? leadsElsewhere(failureClass));
}

/**
 * Decides from what is on record, so that every worker decides the same [11].
 *
 * @param failed the step's failed calls, the one that has just failed included.
 * @param cause the failure of that one.
 */
export function nextTry(
  agent: Agent,
  turn: Pick<Turn, "model" | "originalModel" | "degraded" | "limits">,
  failed: readonly FailedCall[],
  cause: Failure,
): NextTry {
  // What cannot even be said by the agent itself is nothing that another model would help.
  if (turn.degraded === "static_answer") return { next: "fail" };
  const fallback = fallbackFor(agent, turn, cause.class);
  const failures = failed.filter((call) => call.model === turn.model).length;
  const maxFailures =
    fallback === undefined
      ? turn.limits.maxAttemptsPerStep
      : (fallback.afterFailures ?? defaultAfterFailures);
  const isRetried = failureRules[cause.class].action === "retry" && !isInVain(failed, cause);
  if (isRetried && failures < maxFailures) return { next: "same_model", failures };
  if (fallback !== undefined) return { next: "fallback", model: fallback.model };
  return { next: agent.staticAnswer === null ? "fail" : "static_answer" };
}
