import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readFinalUsage, readUsage } from "../src/responses/usage.ts";

describe("the usage of a call", () => {
  it("is read from the Responses API's fields", () => {
    const usage = {
      input_tokens: 10,
      input_tokens_details: { cached_tokens: 4, cache_write_tokens: 2 },
      output_tokens: 3,
      output_tokens_details: { reasoning_tokens: 1 },
      total_tokens: 13,
    };
    expect(readUsage(usage)).toEqual({
      inputTokens: 10,
      cachedTokens: 4,
      cacheWriteTokens: 2,
      outputTokens: 3,
      reasoningTokens: 1,
    });
  });

  it.each([[null], [undefined], ["10"]])("is unknown, not nothing, when it is %j", (usage) => {
    expect(readUsage(usage)).toBeNull();
  });

  it("is unknown when a response that was not refused says that it was nothing", () => {
    const zeros = { input_tokens: 0, output_tokens: 0, total_tokens: 0 };
    expect(readFinalUsage("response.incomplete", zeros)).toBeNull();
    expect(readFinalUsage("response.completed", zeros)).toBeNull();
    expect(readFinalUsage("response.failed", zeros)).toMatchObject({ inputTokens: 0 });
    expect(readFinalUsage("response.completed", { ...zeros, input_tokens: 1 })).toMatchObject({
      inputTokens: 1,
    });
  });

  it("survives whatever a server sends", () => {
    fc.assert(
      fc.property(fc.object(), fc.anything(), (usage, details) => {
        const read = readUsage({ ...usage, input_tokens_details: details, input_tokens: -1 });
        expect(Object.values(read ?? {}).every((count) => count >= 0)).toBe(true);
      }),
    );
  });
});
