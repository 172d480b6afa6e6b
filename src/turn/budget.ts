import { canonicalJson } from "./canonical.ts";
import type { Item } from "./items.ts";
import type { Turn } from "./turn.ts";

/** The limits that end a turn before a model call; each is the reason of an incomplete turn. */
export type BudgetLimit = "step_limit" | "token_limit" | "cost_limit" | "no_progress" | "deadline";

/** What is on record of a turn's model calls. */
export interface Spending {
  /** Of all of them, wasted ones included. */
  tokens: number;
  /** US dollars; calls of unknown price are not in it. */
  costUsd: number;
}

type Limited = Pick<Turn, "limits" | "deadlineAt">;

/** The last word takes this part of a turn's time at most. */
const maxShare = 1 / 4;

/** A worker's clock stops a tool, and the database's says when it finished. */
const maxClockSkewMs = 1_000;

/** What a finished step of a turn has on record. */
interface Finished {
  items: readonly Item[];
  finishedAt: Date;
}

/** From when on tools are stopped, so that time is left for the model's last word. */
export function lastWordAt({ limits, deadlineAt }: Limited): Date {
  const keptMs = Math.min(limits.lastWordMs, Math.floor(limits.maxTurnMs * maxShare));
  return new Date(deadlineAt.getTime() - keptMs);
}

/**
 * The limit that a turn has reached before a model call [13], `null` while there is none. It follows
 * from finished steps and calls that are over, so every worker finds the same.
 *
 * @param steps the turn's finished steps, in order.
 */
export function reachedLimit(
  turn: Limited,
  spent: Spending,
  steps: readonly Finished[],
): BudgetLimit | null {
  const { limits } = turn;
  if (spent.tokens >= limits.maxTurnTokens) return "token_limit";
  if (spent.costUsd >= limits.maxTurnCostUsd) return "cost_limit";
  const isLate = ({ finishedAt }: Finished) =>
    finishedAt.getTime() >= lastWordAt(turn).getTime() - maxClockSkewMs;
  if (steps.some(isLate)) return "deadline";
  const items = steps.flatMap((step) => step.items);
  return mostRepeated(items) >= limits.maxRepeatedCalls ? "no_progress" : null;
}

/** How often the most frequent call was made with the same arguments and the same result. */
function mostRepeated(items: readonly Item[]): number {
  const calls = new Map<unknown, string>();
  const times = new Map<string, number>();
  for (const item of items) {
    const callId = item["call_id"];
    if (item.type === "function_call") calls.set(callId, callText(item));
    if (item.type !== "function_call_output") continue;
    const key = JSON.stringify([calls.get(callId), item["output"]]);
    times.set(key, (times.get(key) ?? 0) + 1);
  }
  return Math.max(0, ...times.values());
}

function callText(call: Item): string {
  const text = String(call["arguments"]);
  try {
    return `${String(call["name"])} ${canonicalJson(JSON.parse(text))}`;
  } catch {
    return `${String(call["name"])} ${text}`;
  }
}

const reasons: Record<BudgetLimit, string> = {
  step_limit: "it has taken as many steps as it may",
  token_limit: "it has used as many tokens as it may",
  cost_limit: "it has cost as much as it may",
  no_progress: "the same tool was called with the same arguments and the same result repeatedly",
  deadline: "its time is up",
};

/** Tells the model that this is its last call. It goes to the model alone, not on record. */
export function lastCallMessage(limit: BudgetLimit): Item {
  const text = `This turn has reached its limit: ${reasons[limit]}. Call no more tools. Say in a few sentences what was done, what was found, and what is left to do.`;
  return {
    type: "message",
    id: `last_call_${limit}`,
    role: "developer",
    content: [{ type: "input_text", text }],
  };
}

/** What a call gets for its output that is not run because of a limit. */
export const notRunOutput = JSON.stringify({
  error: {
    type: "not_run",
    message: "The call was not run, because the turn has reached its limit of steps.",
  },
});
