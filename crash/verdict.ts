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
import { unansweredCalls } from "../src/turn/pairs.ts";
import type { Turn } from "../src/turn/turn.ts";
import { itemsShownOtherwise } from "../test/setup/shownText.ts";
import type { ModelCall } from "./model.ts";
import { readOwnItems } from "./record.ts";
import type { TurnPlace } from "./record.ts";
import type { Expected } from "./users.ts";

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
  /**
   * So many items may be shown and given up, with the calls that made them; otherwise their responses
   * are gone on with.
   */
  mostGivenUp: number;
  /** Something that a tool needs was struck, so that whether it ran may be unknown. */
  mayBeUnknown: boolean;
  expected: Expected;
  /** A cancel that has been on record for longer than this is kept to. */
  cancelWithinMs: number;
  /** Since when a worker that was away could hear of it; `null`: always. */
  backAt: Date | null;
  /** What the subscriber has seen, over all its connections. */
  seen: readonly NumberedEvent[];
  calls: readonly ModelCall[];
  bill: readonly BilledCall[];
  effects: ReadonlyMap<string, number>;
}

/** Holds the turn against everything that must hold of it. */
export async function judge(evidence: Evidence): Promise<Problem[]> {
  const { database, turn } = evidence;
  const [events, ledger, history, items] = await Promise.all([
    readAllEvents(database, turn),
    readModelCalls(database, turn.project, turn.id),
    readHistory(database, turn.project, turn.conversationId),
    readOwnItems(database, turn.id),
  ]);
  return [
    ...checkAnswer(evidence, items),
    ...checkCalls(evidence, items),
    ...checkShown(evidence),
    ...checkStream(evidence.seen, events as NumberedEvent[]),
    ...checkTools(evidence, history),
    ...checkPayments(evidence),
    ...checkLedger(evidence.bill, ledger),
  ];
}

type Asked = Pick<Evidence, "turn" | "expected" | "cancelWithinMs" | "backAt">;

/** @param items what the turn has left in its conversation. */
export function checkAnswer(
  { turn, expected, cancelWithinMs, backAt }: Asked,
  items: readonly Item[],
): Problem[] {
  const problem = (detail: string): Problem[] => [{ breach: "different", detail }];
  if (!expected.statuses.includes(turn.status)) {
    return problem(`the turn is ${turn.status}: ${turn.failure?.class ?? turn.incompleteReason}`);
  }
  const { status, cancelRequestedAt, endedAt } = turn;
  if (status === "completed" && cancelRequestedAt !== null && endedAt !== null) {
    const wasAway = backAt !== null && endedAt >= backAt && backAt > cancelRequestedAt;
    const passedMs = endedAt.getTime() - (wasAway ? backAt : cancelRequestedAt).getTime();
    if (passedMs > cancelWithinMs) {
      return problem(`a cancel was on record for ${passedMs} ms, and the turn went on`);
    }
  }
  if (turn.status === "failed") {
    return items.length === 0 ? [] : problem("a failed turn has left items");
  }
  const said = outputText((turn.output ?? []) as Item[]);
  const isRight =
    turn.status === "cancelled" ? expected.text.startsWith(said) : said === expected.text;
  if (!isRight) return problem(`the answer is ${JSON.stringify(said)}`);
  const kept = outputText(items.filter((item) => item["role"] === "assistant"));
  if (kept !== said) return problem(`the conversation has ${JSON.stringify(kept)}`);
  const asked = items.slice(0, turn.request.input.length);
  return isDeepStrictEqual(asked, turn.request.input) ? [] : problem("the input is not kept");
}

/** The calls of a whole turn are in its conversation, in order, and each that a tool has answered with it. */
export function checkCalls(
  { turn, expected }: Pick<Evidence, "turn" | "expected">,
  items: readonly Item[],
): Problem[] {
  if (turn.status !== "completed") return [];
  const calls = items.filter((item) => item.type === "function_call");
  const names = calls.map((item) => String(item["name"]));
  const unanswered = new Set<unknown>(unansweredCalls(items).map(({ id }) => id));
  const open = calls.filter((item) => unanswered.has(item["call_id"])).map((item) => item["name"]);
  const isRight =
    isDeepStrictEqual(names, expected.calls) && isDeepStrictEqual(open, expected.openCalls);
  const detail = `the conversation has the calls ${names.join(", ")}, of which are open: ${open.join(", ")}`;
  return isRight ? [] : [{ breach: "different", detail }];
}

/** A cancelled turn keeps the last message that it has shown. */
export function checkShown({ turn, seen }: Pick<Evidence, "turn" | "seen">): Problem[] {
  if (turn.status !== "cancelled") return [];
  const deltas = seen.filter((event) => event.type === "response.output_text.delta");
  const last = deltas.at(-1)?.["output_index"];
  const shown = deltas
    .filter((event) => event["output_index"] === last)
    .map((event) => event["delta"])
    .join("");
  const kept = (turn.output as Item[]).findLast((item) => item.type === "message");
  const said = outputText(kept === undefined ? [] : [kept]);
  if (shown === said) return [];
  const detail = `${JSON.stringify(shown)} was shown last, ${JSON.stringify(said)} is kept`;
  return [{ breach: "different", detail }];
}

/**
 * Turns of one conversation stand in its log in the order in which they were asked for, one behind the
 * other, and nothing else does.
 */
export function checkOrder(places: readonly TurnPlace[]): Problem[] {
  const ends = new Map<string, number>();
  const problems: Problem[] = [];
  const problem = (detail: string) => void problems.push({ breach: "different", detail });
  for (const { turnId, conversationId, base, end } of places) {
    const before = ends.get(conversationId) ?? 0;
    if (base !== before) problem(`${turnId} begins at ${base}, the one before ends at ${before}`);
    ends.set(conversationId, end ?? before);
  }
  for (const { conversationId, conversationItems } of places) {
    const end = ends.get(conversationId);
    if (conversationItems === end) continue;
    problem(`${conversationId} has ${conversationItems} items, and its turns end at ${end}`);
  }
  return problems;
}

/** A turn that another one interrupts is cancelled; one that has ended by then has nobody waiting. */
export function checkInterrupt(
  [first]: readonly Turn[],
  [, second]: readonly (readonly NumberedEvent[])[],
): Problem[] {
  const hasWaited = second?.some(({ type }) => type === "response.queued") ?? false;
  const isCancelled = first?.status === "cancelled" || first?.cancelRequestedAt !== null;
  if (!hasWaited || isCancelled) return [];
  return [{ breach: "different", detail: "a turn was interrupted and no cancel is on record" }];
}

/** Every event of the record has been seen once, in order, and they make the answer. */
export function checkStream(
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
  const otherwise = itemsShownOtherwise(seen);
  if (otherwise.length > 0)
    return problem(`the deltas of ${otherwise.join(", ")} are not its text`);
  let made: Response | undefined;
  try {
    for (const event of seen.slice(0, -1)) made = accumulateResponse(event as never, made);
  } catch (error) {
    return problem(`the SDK cannot put the events together: ${String(error)}`);
  }
  const last = seen.at(-1)?.["response"] as Response;
  const shown = new Set(last.output.map((item) => item.id));
  const output = made?.output.filter((item) => shown.has(item.id)) ?? [];
  if (last.status !== "failed" && !isDeepStrictEqual(output, last.output)) {
    return problem("the events make another output than the last one shows");
  }
  const open = (made?.output ?? []).filter(
    (item) => "status" in item && item.status === "in_progress",
  );
  return open.length === 0 ? [] : problem(`${open.length} items were never closed`);
}

/** What a tool says when it has run, by the effects server. */
const done = {
  charge: "done by charge",
  look_up: "done by look_up",
  ask_client: "done by ask_client",
};

/** Effects of a tool that is not repeatable happen once; what the model is told is what happened. */
export function checkTools(
  { effects, mayBeUnknown }: Pick<Evidence, "effects" | "mayBeUnknown">,
  history: readonly Item[],
): Problem[] {
  const charges = [...effects].filter(([call]) => call.startsWith("charge "));
  const problems: Problem[] = charges
    .filter(([, count]) => count > 1)
    .map(([call, count]) => ({
      breach: "tool twice",
      detail: `${call} had its effect ${count} times`,
    }));
  if (charges.length > 1) {
    problems.push({ breach: "tool twice", detail: `${charges.length} keys for one call` });
  }
  const names = new Map(
    history.flatMap((item) =>
      item.type === "function_call" ? [[item["call_id"], String(item["name"])] as const] : [],
    ),
  );
  for (const item of history) {
    if (item.type !== "function_call_output") continue;
    const name = names.get(item["call_id"]);
    const output = String(item["output"]);
    const isUnknown = output.includes("outcome_unknown") || output.includes("is unknown");
    // A tool that may run again is run again; of the other one nobody may know.
    const isHonest = isUnknown && name === "charge" && mayBeUnknown;
    if (output !== done[name as keyof typeof done] && !isHonest) {
      problems.push({ breach: "different", detail: `${name} said ${output}` });
    }
  }
  return problems;
}

/**
 * What is on record, a finished step or a response that the provider keeps, is not bought again. In
 * `background` an id is written with the first event, so text that was given up was bought twice.
 */
export function checkPayments({
  calls,
  mostGivenUp,
  turn,
  seen,
}: Pick<Evidence, "calls" | "mostGivenUp" | "turn" | "seen">): Problem[] {
  const problem = (detail: string): Problem => ({ breach: "paid twice", detail });
  const again = calls.filter((call) => call.isBoughtAgain);
  const problems = again.map(({ step }) => problem(`step ${step} was bought again`));
  const givenUp = seen.filter((event) => {
    const item = event["item"] as { type?: string; status?: string } | undefined;
    return event.type === "response.output_item.done" && item?.status === "incomplete";
  });
  if (turn.status === "completed" && givenUp.length > mostGivenUp) {
    problems.push(problem("an item whose response is kept was given up"));
  }
  return problems;
}

/**
 * Every call on the bill has one row, used once for each answer; what is said to be exact equals the
 * bill, and there is no other row that names a call. Rows of calls that never left, or of which nobody
 * heard the id, are wasted and not exact.
 */
export function checkLedger(
  bill: readonly BilledCall[],
  ledger: readonly ModelCallRecord[],
): Problem[] {
  const problem = (detail: string): Problem => ({ breach: "ledger", detail });
  const problems: Problem[] = [];
  const unnamed = ledger.filter((row) => row.responseId === null && row.requestId === null);
  const named = new Set(ledger.filter((row) => !unnamed.includes(row)));
  let nameless = 0;
  for (const billed of bill) {
    const rows = [...named].filter(
      ({ responseId, requestId }) =>
        requestId === billed.requestId || (responseId !== null && responseId === billed.responseId),
    );
    for (const each of rows) named.delete(each);
    const [row] = rows;
    if (rows.length > 1) problems.push(problem(`call ${billed.requestId} has two rows`));
    if (row === undefined) nameless += 1;
    else if (row.certainty === "exact") {
      const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = billed;
      const same = { ...row.tokens, inputTokens, cachedTokens, outputTokens, reasoningTokens };
      if (!isDeepStrictEqual(same, row.tokens)) {
        problems.push(problem(`call ${billed.requestId} is billed with other tokens`));
      }
    }
  }
  for (const { responseId } of named) problems.push(problem(`nobody has billed ${responseId}`));
  if (nameless > unnamed.length) {
    problems.push(problem(`${nameless - unnamed.length} billed calls have no row`));
  }
  if (ledger.some((row) => row.outcome === "open")) problems.push(problem("a row is open"));
  if (unnamed.some((row) => row.outcome === "used" || row.certainty === "exact")) {
    problems.push(problem("a row is used or exact, and names no call"));
  }
  const used = ledger.filter((row) => row.outcome === "used");
  if (used.some((row) => row.certainty !== "exact")) {
    problems.push(problem("a used row is not exact"));
  }
  if (used.length !== new Set(used.map((row) => row.step)).size) {
    problems.push(problem("a step has used two calls"));
  }
  return problems;
}
