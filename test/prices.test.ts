import { describe, expect, it } from "vitest";
import { priceOf } from "../src/turn/prices.ts";

describe("the price of a call", () => {
  const usage = {
    inputTokens: 100_000,
    cachedTokens: 0,
    cacheWriteTokens: 0,
    outputTokens: 0,
    reasoningTokens: 0,
  };

  it("is lower for what came from the cache", () => {
    const fresh = priceOf("gpt-6-luna", usage);
    const cached = priceOf("gpt-6-luna", { ...usage, cachedTokens: 100_000 });
    expect(fresh).toBeCloseTo(0.01, 6);
    expect(cached).toBeCloseTo(0.001, 6);
  });

  it("is higher for a long context", () => {
    const costUsd = priceOf("gpt-6-luna", { ...usage, inputTokens: 1_000_000 });
    expect(costUsd).toBeCloseTo(0.2, 6);
  });

  it("is known for dated snapshots", () => {
    const price = priceOf("gpt-4o-2024-08-06", usage);
    expect(price).toBeGreaterThan(0);
  });

  it("is unknown, not nothing, for a model that is not on the list", () => {
    expect(priceOf("my-own-model", usage)).toBeNull();
  });

  it("is unknown for figures that contradict each other", () => {
    expect(priceOf("gpt-6-luna", { ...usage, inputTokens: 1, cachedTokens: 2 })).toBeNull();
  });
});
