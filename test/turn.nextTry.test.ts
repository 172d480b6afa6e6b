import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { defineAgent } from "../src/turn/agent.ts";
import { failure, failureRules } from "../src/turn/failures.ts";
import type { FailureClass } from "../src/turn/failures.ts";
import { nextTry } from "../src/turn/fallbacks.ts";
import type { FailedCall } from "../src/turn/fallbacks.ts";
import { defaultTurnLimits } from "../src/turn/limits.ts";

const classes = Object.keys(failureRules) as FailureClass[];
const models = ["first", "second", "third"];

const fallback = (model: string) =>
  fc.record(
    {
      model: fc.constant(model),
      on: fc.subarray(classes),
      afterFailures: fc.integer({ min: 1, max: 4 }),
    },
    { requiredKeys: ["model"] },
  );

const agents = fc
  .tuple(fallback("second"), fallback("third"), fc.option(fc.constant("Sorry.")))
  .map(([second, third, staticAnswer]) =>
    defineAgent({ name: "agent", model: "first", fallbacks: [second, third], staticAnswer }),
  );

const limits = { ...defaultTurnLimits, maxAttemptsPerStep: 5 };

describe("what follows a failed call", () => {
  test("is decided within bounds: no model twice, in order, and an end", () => {
    fc.assert(
      fc.property(agents, fc.infiniteStream(fc.constantFrom(...classes)), (agent, causes) => {
        let turn = { model: "first", originalModel: null as string | null, degraded: null, limits };
        const failed: FailedCall[] = [];
        const called = ["first"];
        for (const cause of causes) {
          failed.push({ model: turn.model, class: cause });
          const next = nextTry(agent, turn, failed, failure(cause));
          if (next.next === "fallback") {
            called.push(next.model);
            turn = { model: next.model, originalModel: "first", degraded: null, limits };
          } else if (next.next !== "same_model") {
            expect(next.next).toBe(agent.staticAnswer === null ? "fail" : "static_answer");
            break;
          }
        }
        expect(called).toEqual(models.filter((model) => called.includes(model)));
        const perModel = called.map(
          (model) => failed.filter((call) => call.model === model).length,
        );
        expect(Math.max(...perModel)).toBeLessThanOrEqual(5);
      }),
    );
  });

  test("is the same model only after a failure that is retried", () => {
    fc.assert(
      fc.property(agents, fc.constantFrom(...classes), (agent, cause) => {
        const turn = { model: "first", originalModel: null, degraded: null, limits };
        const next = nextTry(agent, turn, [{ model: "first", class: cause }], failure(cause));
        if (failureRules[cause].action !== "retry") expect(next.next).not.toBe("same_model");
      }),
    );
  });
});

test("an item that the provider does not have is tried once more, whatever failed before", () => {
  const turn = { model: "first", originalModel: null, degraded: null, limits };
  const cause = failure("item_not_found");
  const next = (fallbacks: object[], ...failed: FailureClass[]) =>
    nextTry(
      defineAgent({ name: "agent", model: "first", fallbacks: fallbacks as never }),
      turn,
      failed.map((each) => ({ model: "first", class: each })),
      cause,
    );
  expect(next([], "overloaded", "overloaded", "item_not_found")).toMatchObject({
    next: "same_model",
  });
  expect(next([], "item_not_found", "item_not_found")).toEqual({ next: "fail" });
  expect(next([{ model: "second", afterFailures: 4 }], "item_not_found", "item_not_found")).toEqual(
    {
      next: "fallback",
      model: "second",
    },
  );
});

describe("a definition of fallbacks", () => {
  const define = (fallbacks: object[]) => () =>
    defineAgent({ name: "agent", model: "first", fallbacks: fallbacks as never });

  test.each([
    ["its own model again", [{ model: "first" }]],
    ["a model twice", [{ model: "second" }, { model: "second" }]],
    ["a class that is none", [{ model: "second", on: ["no_such_class"] }]],
    ["no failures", [{ model: "second", afterFailures: 0 }]],
  ])("with %s is refused", (_, fallbacks) => {
    expect(define(fallbacks)).toThrow(TypeError);
  });
});
