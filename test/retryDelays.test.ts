import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ModelPaused, ModelPauses } from "../src/activities/modelPauses.ts";
import { retryAfterFailure } from "../src/activities/stepContext.ts";
import { retryDelayMs } from "../src/turn/backoff.ts";
import { failure } from "../src/turn/failures.ts";
import type { Turn } from "../src/turn/turn.ts";

describe("the delay before a retry", () => {
  const maxDelayMs = 30_000;
  const maxServerDelayMs = 600_000;
  const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
  const attempts = fc.integer({ min: 1, max: 2_000 });

  test("doubles with the attempts up to its bound, and is spread over its upper half", () => {
    fc.assert(
      fc.property(attempts, random, (attempt, chance) => {
        const ceiling = Math.min(maxDelayMs, 500 * 2 ** (attempt - 1));
        const delayMs = retryDelayMs(failure("overloaded"), attempt, chance);
        expect(delayMs).toBeCloseTo(ceiling * (0.5 + chance / 2), -1);
        expect(delayMs).toBeGreaterThanOrEqual(ceiling / 2);
        expect(delayMs).toBeLessThanOrEqual(ceiling);
      }),
    );
  });

  test("is never shorter than the provider asked for, nor much longer, within its bound", () => {
    fc.assert(
      fc.property(fc.nat(10 * maxServerDelayMs), attempts, random, (asks, attempt, chance) => {
        const asked = failure("rate_limited", undefined, { retryAfterMs: asks });
        const delayMs = retryDelayMs(asked, attempt, chance);
        const heeded = Math.min(asks, maxServerDelayMs);
        expect(delayMs).toBeGreaterThanOrEqual(heeded);
        const ownMs = retryDelayMs(failure("rate_limited"), attempt, chance);
        expect(delayMs).toBeLessThanOrEqual(Math.max(ownMs, Math.ceil(heeded * 1.1)));
      }),
    );
  });

  test("does not let a provider that asks for nothing be asked without a pause", () => {
    const asked = failure("rate_limited", undefined, { retryAfterMs: 0 });
    expect(retryDelayMs(asked, 1, 0)).toBe(250);
  });

  test("does not go beyond the turn's deadline", () => {
    fc.assert(
      fc.property(fc.integer({ min: -60_000, max: 60_000 }), attempts, (leftMs, attempt) => {
        const turn = { deadlineAt: new Date(Date.now() + leftMs) } as Turn;
        const retry = retryAfterFailure(failure("overloaded"), attempt, turn);
        // Temporal takes 0 for "never again".
        expect(Number(retry.nextRetryDelay)).toBeGreaterThanOrEqual(1);
        expect(Number(retry.nextRetryDelay)).toBeLessThanOrEqual(Math.max(1, leftMs));
        expect(retry.nonRetryable).toBe(false);
      }),
    );
  });
});

describe("a paused model", () => {
  /** The clock of the pauses stands still as long as the event loop does not go round. */
  const clockSlackMs = 5_000;
  /** Longer than a busy machine takes for a test. */
  const delays = fc.integer({ min: 30_000, max: 10_000_000 });
  const attempts = fc.integer({ min: 1, max: 50 });

  function held(pauses: ModelPauses, model: string, attempt: number): number | null {
    try {
      pauses.check(model, attempt);
      return null;
    } catch (error) {
      if (!(error instanceof ModelPaused)) throw error;
      return error.delayMs;
    }
  }

  test("holds its calls for the rest of the pause and a backoff, at most a minute and that", () => {
    fc.assert(
      fc.property(fc.array(delays, { minLength: 1 }), attempts, (given, attempt) => {
        const pauses = new ModelPauses();
        for (const delayMs of given) pauses.pause("a", delayMs);
        const longest = Math.min(60_000, Math.max(...given)) + clockSlackMs;
        expect(pauses.leftMs("a")).toBeLessThanOrEqual(longest);
        const backoffMs = Math.min(30_000, 500 * 2 ** (attempt - 1));
        const heldMs = held(pauses, "a", attempt);
        expect(heldMs).not.toBeNull();
        expect(heldMs).toBeGreaterThanOrEqual(backoffMs / 2);
        expect(heldMs).toBeLessThanOrEqual(longest + backoffMs);
        expect(held(pauses, "b", attempt)).toBeNull();
      }),
    );
  });

  test("spreads the calls that wait", () => {
    const pauses = new ModelPauses();
    pauses.pause("a", 60_000);
    const waits = Array.from({ length: 50 }, () => held(pauses, "a", 5));
    expect(new Set(waits).size).toBeGreaterThan(25);
  });

  test("keeps the longer of two pauses", () => {
    const pauses = new ModelPauses();
    pauses.pause("a", 50_000);
    pauses.pause("a", 10);
    expect(pauses.leftMs("a")).toBeGreaterThan(10_000);
  });

  test("does not hold a call for ever", () => {
    const pauses = new ModelPauses();
    pauses.pause("a", 60_000);
    expect(held(pauses, "a", 50)).not.toBeNull();
    expect(held(pauses, "a", 51)).toBeNull();
  });
});
