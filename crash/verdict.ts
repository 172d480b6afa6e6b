import { isDeepStrictEqual } from "node:util";
import { accumulateResponse } from "openai/lib/responses/ResponseAccumulator";
import type { Response } from "openai/resources/responses/responses";
import type { BilledCall } from "../src/simulator/server.ts";
import { readHistory } from "../src/store/conversations.ts";
import type { Database } from "../src/store/database.ts";
import { readAllEvents } from "../src/store/eventLog.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import type { ModelCallRecord } from "../src/store/modelCalls.ts";
import type { NumberedEvent } from "../src/turn/events.ts";
import { outputText } from "../src/turn/items.ts";
import type { Item } from "../src/turn/items.ts";
import type { Turn } from "../src/turn/turn.ts";
import type { ModelCall } from "./scenario.ts";

/** What must never be; each is a column of the totals. */
export type Breach =
  | "lost"
  | "different"
  | "missing or doubled"
  | "tool twice"
  | "paid twice"
  | "ledger"
  | "left behind"
  | "other";

export interface Problem {
  breach: Breach;
  detail: string;
}

/** All that is known of a turn when everything is quiet again. */
export interface Evidence {
  database: Database;
  turn: Turn;
  expected: { text: string; statuses: readonly Turn["status"][] };
  /** What the subscriber has seen, over all its connections. */
  seen: readonly NumberedEvent[];
  calls: readonly ModelCall[];
  bill: readonly BilledCall[];
  effects: ReadonlyMap<string, number>;
}

/** Holds the turn against everything that must hold of it. */
export async function judge(evidence: Evidence): Promise<Problem[]> {
  const { database, turn } = evidence;
  const [events, ledger, history] = await Promise.all([
    readAllEvents(database, turn),
    readModelCalls(database, turn.project, turn.id),
    readHistory(database, turn.project, turn.conversationId),
  ]);
  return [
    ...checkAnswer(evidence, history),
    ...checkStream(evidence.seen, events as NumberedEvent[]),
    ...checkTools(evidence.effects, history),
    ...checkPayments(evidence.calls),
    ...checkLedger(evidence.bill, ledger),
  ];
}

function checkAnswer({ turn, expected }: Evidence, history: readonly Item[]): Problem[] {
  const problem = (detail: string): Problem[] => [{ breach: "different", detail }];
  if (!expected.statuses.includes(turn.status)) {
    return problem(`the turn is ${turn.status}: ${turn.failure?.class ?? turn.incompleteReason}`);
  }
  if (turn.status === "failed") {
    return history.length === 0 ? [] : problem("a failed turn has left items");
  }
  const said = outputText((turn.output ?? []) as Item[]);
  if (said !== expected.text) return problem(`the answer is ${JSON.stringify(said)}`);
  const kept = outputText(history.filter((item) => item["role"] === "assistant"));
  if (kept !== expected.text) return problem(`the conversation has ${JSON.stringify(kept)}`);
  return [];
}

/** Every event of the record has been seen once, in order, and they make the answer. */
function checkStream(
  seen: readonly NumberedEvent[],
  recorded: readonly NumberedEvent[],
): Problem[] {
  const problem = (detail: string): Problem[] => [{ breach: "missing or doubled", detail }];
  const numbers = seen.map((event) => event.sequence_number);
  const wrong = numbers.findIndex((number, at) => number !== at);
  if (wrong !== -1) return problem(`event ${numbers[wrong]} was seen at place ${wrong}`);
  const other = recorded.findIndex((event, at) => !isDeepStrictEqual(event, seen[at]));
  if (other !== -1 || seen.length !== recorded.length) {
    return problem(`${seen.length} events were seen, ${recorded.length} are on record`);
  }
  let made: Response | undefined;
  try {
    for (const event of seen.slice(0, -1)) made = accumulateResponse(event as never, made);
  } catch (error) {
    return problem(`the SDK cannot put the events together: ${String(error)}`);
  }
  const last = seen.at(-1)?.["response"] as Response;
  const shown = new Set(last.output.map((item) => item.id));
  const output = made?.output.filter((item) => shown.has(item.id)) ?? [];
  if (last.status === "completed" && !isDeepStrictEqual(output, last.output)) {
    return problem("the events make another output than the last one shows");
  }
  const open = (made?.output ?? []).filter(
    (item) => "status" in item && item.status === "in_progress",
  );
  return open.length === 0 ? [] : problem(`${open.length} items were never closed`);
}

/** Effects of a tool that is not repeatable happen once; what the model is told is what happened. */
function checkTools(effects: ReadonlyMap<string, number>, history: readonly Item[]): Problem[] {
  const problems: Problem[] = [...effects]
    .filter(([call, count]) => call.startsWith("charge ") && count > 1)
    .map(([call, count]) => ({
      breach: "tool twice",
      detail: `${call} had its effect ${count} times`,
    }));
  const charges = [...effects.keys()].filter((call) => call.startsWith("charge ")).length;
  if (charges > 1) problems.push({ breach: "tool twice", detail: `${charges} keys for one call` });
  for (const item of history) {
    if (item.type !== "function_call_output") continue;
    const output = String(item["output"]);
    const isTrue = /^done by (charge|look_up)$/.test(output);
    const isHonest = output.includes("outcome_unknown") || output.includes("is unknown");
    if (!isTrue && !isHonest)
      problems.push({ breach: "different", detail: `a tool said ${output}` });
  }
  return problems;
}

/** What is on record, a finished step or a response that the provider keeps, is not bought again. */
function checkPayments(calls: readonly ModelCall[]): Problem[] {
  return calls
    .filter((call) => call.isBoughtAgain)
    .map(({ step }) => ({ breach: "paid twice", detail: `step ${step} was bought again` }));
}

/**
 * Every call on the bill has its row, used once for each answer; what is said to be exact equals the
 * bill. Rows of calls that never left, or of which nobody heard the id, are wasted and not exact.
 */
function checkLedger(bill: readonly BilledCall[], ledger: readonly ModelCallRecord[]): Problem[] {
  const problem = (detail: string): Problem => ({ breach: "ledger", detail });
  const problems: Problem[] = [];
  const unnamed = ledger.filter((row) => row.responseId === null && row.requestId === null);
  let nameless = 0;
  for (const billed of bill) {
    const row = ledger.find(
      ({ responseId, requestId }) =>
        requestId === billed.requestId || (responseId !== null && responseId === billed.responseId),
    );
    if (row === undefined) nameless += 1;
    else if (row.certainty === "exact") {
      const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = billed;
      const same = { ...row.tokens, inputTokens, cachedTokens, outputTokens, reasoningTokens };
      if (!isDeepStrictEqual(same, row.tokens)) {
        problems.push(problem(`call ${billed.requestId} is billed with other tokens`));
      }
    }
  }
  if (nameless > unnamed.length) {
    problems.push(problem(`${nameless - unnamed.length} billed calls have no row`));
  }
  if (ledger.some((row) => row.outcome === "open")) problems.push(problem("a row is open"));
  if (unnamed.some((row) => row.outcome === "used" || row.certainty === "exact")) {
    problems.push(problem("a row is used or exact, and names no call"));
  }
  const used = ledger.filter((row) => row.outcome === "used");
  if (used.length !== new Set(used.map((row) => row.step)).size) {
    problems.push(problem("a step has used two calls"));
  }
  return problems;
}
