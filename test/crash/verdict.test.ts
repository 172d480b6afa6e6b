import { describe, expect, test } from "vitest";
import {
  checkAnswer,
  checkCalls,
  checkInterrupt,
  checkLedger,
  checkOrder,
  checkPayments,
  checkShown,
  checkStream,
  checkTools,
} from "../../crash/verdict.ts";
import type { Evidence, Problem } from "../../crash/verdict.ts";

const cancelWithinMs = 2_000;
const uncalled = { calls: [], openCalls: [] };

type Bill = Evidence["bill"];
type Ledger = Parameters<typeof checkLedger>[1];
type Seen = Evidence["seen"];
type History = Parameters<typeof checkTools>[1];

const breaches = (problems: readonly Problem[]) => problems.map(({ breach }) => breach);

const message = (status: string) => ({
  id: "msg_1",
  type: "message",
  role: "assistant",
  status,
  content: [{ type: "output_text", text: "Hi", annotations: [] }],
});

const bodies = [
  { type: "response.created", response: { id: "resp_1", output: [] } },
  { type: "response.output_item.added", output_index: 0, item: message("in_progress") },
  {
    type: "response.output_text.delta",
    item_id: "msg_1",
    output_index: 0,
    content_index: 0,
    delta: "H",
  },
  {
    type: "response.output_text.delta",
    item_id: "msg_1",
    output_index: 0,
    content_index: 0,
    delta: "i",
  },
  { type: "response.output_item.done", output_index: 0, item: message("completed") },
  {
    type: "response.completed",
    response: { id: "resp_1", status: "completed", output: [message("completed")] },
  },
];
const events = bodies.map((body, at) => ({ sequence_number: at, ...body })) as unknown as Seen;

const call = (name: string, output: string) =>
  [
    { type: "function_call", id: "fc_1", call_id: "call_1", name },
    { type: "function_call_output", id: "fco_1", call_id: "call_1", output },
  ] as History;
const unknown = '{"error":{"type":"outcome_unknown","message":"…"}}';

const billed = {
  requestId: "req_1",
  responseId: "resp_up",
  inputTokens: 10,
  cachedTokens: 0,
  outputTokens: 5,
  reasoningTokens: 0,
};
const row = {
  step: 1,
  requestId: "req_1",
  responseId: "resp_up",
  outcome: "used",
  certainty: "exact",
  tokens: {
    inputTokens: 10,
    cachedTokens: 0,
    cacheWriteTokens: 0,
    outputTokens: 5,
    reasoningTokens: 0,
  },
};
const ledgerOf = (...rows: object[]) => rows as unknown as Ledger;
const bill = [billed] as unknown as Bill;

/** A matrix that could not break would prove nothing. */
describe("the judge of the crash matrix", () => {
  test("finds nothing where all is well", () => {
    expect(checkStream(events, [...events])).toEqual([]);
    const effects = new Map([["charge key", 1]]);
    const honest = { effects, mayBeUnknown: false };
    expect(checkTools(honest, call("charge", "done by charge"))).toEqual([]);
    expect(checkLedger(bill, ledgerOf(row))).toEqual([]);
  });

  test("finds another answer", () => {
    const turn = {
      status: "completed",
      cancelRequestedAt: null,
      output: [message("completed")],
    } as never;
    const expected = { text: "Hello", statuses: ["completed"] } as never;
    expect(breaches(checkAnswer({ turn, expected, cancelWithinMs, backAt: null }, []))).toEqual([
      "different",
    ]);
  });

  test("finds a turn that went on though its cancel was on record", () => {
    const expected = { ...uncalled, text: "Hi", statuses: ["cancelled", "completed"] } as const;
    const content = [{ type: "output_text", text: "Hi" }];
    const output = [{ ...message("completed"), content }];
    const endedAfter = (passedMs: number, backAt: Date | null = null) => {
      const times = { cancelRequestedAt: new Date(0), endedAt: new Date(passedMs) };
      const turn = { status: "completed", output, request: { input: [] }, ...times } as never;
      return breaches(checkAnswer({ turn, expected, cancelWithinMs, backAt }, output));
    };
    expect(endedAfter(cancelWithinMs)).toEqual([]);
    expect(endedAfter(cancelWithinMs + 1)).toEqual(["different"]);
    const back = new Date(7_000);
    expect(endedAfter(7_000 + cancelWithinMs, back)).toEqual([]);
    expect(endedAfter(7_001 + cancelWithinMs, back)).toEqual(["different"]);
    // Somebody else ended it while the worker was away.
    expect(endedAfter(6_999, back)).toEqual(["different"]);
  });

  test("lets a cancelled turn have a beginning of the answer, and no other text", () => {
    const expected = { ...uncalled, text: "Hi there", statuses: ["cancelled"] } as const;
    const of = (text: string, kept = text) => {
      const content = [{ type: "output_text", text }];
      const output = [{ ...message("incomplete"), content }];
      const turn = { status: "cancelled", output, request: { input: [] } } as never;
      const items = [{ ...message("incomplete"), content: [{ type: "output_text", text: kept }] }];
      return breaches(checkAnswer({ turn, expected, cancelWithinMs, backAt: null }, items));
    };
    expect(of("Hi")).toEqual([]);
    expect(of("there")).toEqual(["different"]);
    expect(of("Hi", "Hi there")).toEqual(["different"]);
  });

  test("finds a turn that stands before the one that was asked for first, and items of nobody", () => {
    const place = (turnId: string, base: number, end: number | null) => ({
      turnId,
      conversationId: "conv_1",
      base,
      end,
      conversationItems: 4,
    });
    expect(checkOrder([place("one", 0, 2), place("failed", 2, null), place("two", 2, 4)])).toEqual(
      [],
    );
    const swapped = [place("one", 2, 4), place("two", 0, 2)];
    expect(new Set(breaches(checkOrder(swapped)))).toEqual(new Set(["different"]));
    expect(breaches(checkOrder([place("one", 0, 2)]))).toEqual(["different"]);
  });

  test.each([
    ["a gap", (seen: Seen) => [...seen.slice(0, 1), ...seen.slice(2)]],
    ["an event twice", (seen: Seen) => [...seen.slice(0, 2), ...seen.slice(1)]],
    ["a missing end", (seen: Seen) => seen.slice(0, -1)],
  ])("finds %s in what the subscriber saw", (_, distort) => {
    expect(breaches(checkStream(distort(events), [...events]))).toEqual(["missing or doubled"]);
  });

  test.each([
    ["missing", ["i"]],
    ["doubled", ["H", "i", "i"]],
    ["in another order", ["i", "H"]],
  ])("finds tokens that are %s on record and in what was seen alike", (_, deltas) => {
    const [created, added, delta] = bodies;
    const told = deltas.map((text) => ({ ...delta, delta: text }));
    const distorted = [created, added, ...told, ...bodies.slice(4)].map((body, at) => ({
      ...body,
      sequence_number: at,
    })) as unknown as Seen;
    expect(breaches(checkStream(distorted, [...distorted]))).toEqual(["missing or doubled"]);
  });

  test("finds text that was shown and that a cancelled turn has lost", () => {
    const cancelledTurn = (output: unknown[]) => ({ status: "cancelled", output }) as never;
    const kept = { turn: cancelledTurn([message("incomplete")]), seen: events };
    expect(checkShown(kept)).toEqual([]);
    expect(breaches(checkShown({ ...kept, turn: cancelledTurn([]) }))).toEqual(["different"]);
  });

  test("finds calls that the conversation has lost, and calls without their output", () => {
    const turn = { status: "completed" } as never;
    const expected = { text: "", statuses: [], calls: ["charge"], openCalls: [] };
    const [asked, answered] = call("charge", "done by charge");
    const of = (...items: History) => breaches(checkCalls({ turn, expected }, items));
    expect(of(...call("charge", "done by charge"))).toEqual([]);
    expect(of()).toEqual(["different"]);
    expect(of(asked as never)).toEqual(["different"]);
    expect(of(answered as never)).toEqual(["different"]);
  });

  test("finds an interrupt that has cancelled nothing", () => {
    const first = (status: string, cancelRequestedAt: Date | null) =>
      [{ status, cancelRequestedAt }] as never;
    const waited = [[], [{ type: "response.created" }, { type: "response.queued" }]] as never;
    const atOnce = [[], [{ type: "response.created" }]] as never;
    expect(checkInterrupt(first("completed", new Date(100)), waited)).toEqual([]);
    expect(checkInterrupt(first("cancelled", null), waited)).toEqual([]);
    expect(checkInterrupt(first("completed", null), atOnce)).toEqual([]);
    expect(breaches(checkInterrupt(first("completed", null), waited))).toEqual(["different"]);
  });

  test("finds an effect that happened twice, under one key or two", () => {
    const history = call("charge", "done by charge");
    const twice = { effects: new Map([["charge key", 2]]), mayBeUnknown: true };
    expect(breaches(checkTools(twice, history))).toEqual(["tool twice"]);
    const keys = new Map([
      ["charge key", 1],
      ["charge other", 1],
    ]);
    const two = { effects: keys, mayBeUnknown: true };
    expect(breaches(checkTools(two, history))).toEqual(["tool twice"]);
  });

  test("lets an outcome be unknown only of the tool that may not repeat, and where it was struck", () => {
    const effects = new Map<string, number>();
    const of = (name: string, mayBeUnknown: boolean) =>
      breaches(checkTools({ effects, mayBeUnknown }, call(name, unknown)));
    expect(of("charge", true)).toEqual([]);
    expect(of("charge", false)).toEqual(["different"]);
    expect(of("look_up", true)).toEqual(["different"]);
  });

  test("finds what was bought again, and text of a kept response that was given up", () => {
    const turn = { status: "completed" } as never;
    const again = [{ turn: 1, step: 1, requestId: "req_2", isBoughtAgain: true }];
    const bought = { calls: again, mostGivenUp: Infinity, turn, seen: events };
    expect(breaches(checkPayments(bought))).toEqual(["paid twice"]);
    const item = message("incomplete");
    const closed = [{ ...events[4], item }] as unknown as Seen;
    const kept = { calls: [], mostGivenUp: 0, turn, seen: closed };
    expect(breaches(checkPayments(kept))).toEqual(["paid twice"]);
    expect(checkPayments({ ...kept, mostGivenUp: 1 })).toEqual([]);
  });

  test.each([
    ["a billed call without a row", ledgerOf()],
    ["other tokens", ledgerOf({ ...row, tokens: { ...row.tokens, outputTokens: 6 } })],
    ["an open row", ledgerOf({ ...row, outcome: "open" })],
    ["a used row that is not exact", ledgerOf({ ...row, certainty: "estimated" })],
    ["two used calls of a step", ledgerOf(row, { ...row, requestId: "req_2" })],
    ["two rows of one call", ledgerOf(row, { ...row, step: 2, outcome: "wasted" })],
    [
      "a row that nobody has billed",
      ledgerOf(row, { ...row, step: 2, requestId: "req_2", responseId: "resp_2" }),
    ],
  ])("finds %s in the ledger", (_, ledger) => {
    expect(new Set(breaches(checkLedger(bill, ledger)))).toEqual(new Set(["ledger"]));
  });
});
