import fc from "fast-check";
import { expect, test } from "vitest";
import { OpenItems } from "../src/turn/openItems.ts";
import { takeOver } from "../src/turn/takeOver.ts";
import type { RecordedStep } from "../src/turn/takeOver.ts";

const blank = {
  name: "n",
  call: null,
  effectKey: null,
  outcome: null,
  verdict: null,
  items: [],
  output: [],
};

/** The steps of a turn of some rounds of calls, with gaps between places, that ended at any point. */
const recordedTurn = fc
  .record({
    rounds: fc.array(fc.array(fc.boolean(), { minLength: 1, maxLength: 4 }), { maxLength: 4 }),
    gap: fc.integer({ min: 1, max: 3 }),
    isLastEnded: fc.boolean(),
  })
  .map(({ rounds, gap, isLastEnded }) => {
    const steps: RecordedStep[] = [];
    let place = 0;
    const next = () => (place += gap);
    for (const [round, calls] of rounds.entries()) {
      const message = { type: "message", id: `msg_${round}`, role: "assistant", content: [] };
      const made = calls.map((_, at) => ({
        callId: `call_${round}_${at}`,
        name: "tool",
        arguments: "{}",
        outputIndex: next(),
        itemId: `mcp_${round}_${at}`,
      }));
      steps.push({
        ...blank,
        number: steps.length + 1,
        kind: "model",
        isFinished: true,
        verdict: { next: "tools", tools: calls.map(() => "tool"), thenEnd: false },
        items: [message],
        output: [{ index: next(), item: message }],
      });
      for (const [at, isFinished] of calls.entries()) {
        const call = made[at] as (typeof made)[number];
        const item = {
          type: "mcp_call",
          id: call.itemId,
          arguments: "{}",
          output: "",
          error: null,
        };
        steps.push({
          ...blank,
          number: steps.length + 1,
          kind: "tool",
          isFinished,
          call,
          output: isFinished ? [{ index: call.outputIndex, item }] : [],
        });
      }
      if (!calls.every(Boolean)) return steps;
    }
    if (isLastEnded) {
      const verdict = { next: "end", status: "completed" } as const;
      const number = steps.length + 1;
      steps.push({ ...blank, number, kind: "model", isFinished: true, verdict });
    }
    return steps;
  });

test("a replay takes all steps over but the one that ended the turn, numbered as they were", () => {
  fc.assert(
    fc.property(recordedTurn, (steps) => {
      const kept = steps.filter((step) => step.verdict?.next !== "end");
      const taken = takeOver(steps).steps;
      expect(taken.map((step) => step.number)).toEqual(kept.map((step) => step.number));
      expect(taken.map((step) => step.call?.callId)).toEqual(kept.map((step) => step.call?.callId));
    }),
  );
});

test("a replay's stream has every item once, at places without gaps, and leaves open what is to run", () => {
  fc.assert(
    fc.property(recordedTurn, (steps) => {
      const taken = takeOver(steps);
      const added = taken.events.filter((event) => event.type === "response.output_item.added");
      expect(added.map((event) => event["output_index"])).toEqual(added.map((_, at) => at));
      expect(taken.nextOutputIndex).toBe(added.length);
      const ids = added.map((event) => (event["item"] as { id: string }).id);
      expect(new Set(ids).size).toBe(ids.length);
      const old = new Set(
        steps.flatMap(({ output, call }) => [...output.map((o) => o.item["id"]), call?.itemId]),
      );
      expect(ids.filter((id) => old.has(id))).toEqual([]);
      const open = new OpenItems();
      for (const event of taken.events) open.apply(event);
      const unfinished = taken.steps.filter((step) => !step.isFinished);
      const left = open.close().output.map(({ item }) => item["id"]);
      expect(new Set(left)).toEqual(new Set(unfinished.map((step) => step.call?.itemId)));
      const shown = taken.steps.flatMap((step) => step.output);
      for (const { index, item } of shown) expect(ids[index]).toBe(item["id"]);
    }),
  );
});

test("an item that others name by its id keeps it", () => {
  const request = { type: "mcp_approval_request", id: "mcpr_1", name: "x", arguments: "{}" };
  const step: RecordedStep = {
    ...blank,
    number: 1,
    kind: "model",
    isFinished: true,
    verdict: { next: "tools", tools: [], thenEnd: true },
    items: [request, { type: "reasoning", id: "rs_1", summary: [] }],
  };
  const [taken] = takeOver([step]).steps;
  expect(taken?.items).toMatchObject([
    { id: "mcpr_1" },
    { id: expect.stringMatching(/^rs_\w{32}$/) },
  ]);
});
