import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { TemporalWatch } from "../src/activities/temporalWatch.ts";

const longEnoughMs = 10_000;
/** As the SDK wraps what gRPC has answered, or has not. */
const grpcError = (code: number) => Object.assign(new Error("grpc"), { cause: { code } });

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test.each([
  ["cannot be reached", grpcError(14), true],
  ["does not answer in time", grpcError(4), true],
  ["is at a limit", grpcError(8), false],
  ["does not allow the question", grpcError(7), false],
])("a Temporal that %s", async (_, error, isLost) => {
  const watch = new TemporalWatch(() => Promise.reject(error));
  const { signal, release } = watch.watch("resp_1");
  await vi.advanceTimersByTimeAsync(longEnoughMs);
  expect(signal.aborted).toBe(isLost);
  release();
});
