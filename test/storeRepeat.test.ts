import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { repeatEvery } from "../src/store/repeat.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("work that takes long is not begun again meanwhile, and goes on when it has failed", async () => {
  const begun: PromiseWithResolvers<void>[] = [];
  const stop = repeatEvery(1_000, () => {
    const work = Promise.withResolvers<void>();
    begun.push(work);
    return work.promise;
  });
  await vi.advanceTimersByTimeAsync(5_000);
  expect(begun).toHaveLength(1);
  begun[0]?.reject(new Error("the database is away"));
  await vi.advanceTimersByTimeAsync(1_000);
  expect(begun).toHaveLength(2);
  stop();
  begun[1]?.resolve();
  await vi.advanceTimersByTimeAsync(5_000);
  expect(begun).toHaveLength(2);
});
