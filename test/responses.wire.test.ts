import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { openModelEndpoint } from "../src/responses/call.ts";
import type { ModelEndpoint, UpstreamEvent } from "../src/responses/call.ts";
import { failureRules, StepFailure } from "../src/turn/failures.ts";
import type { Failure } from "../src/turn/failures.ts";
import { userMessage } from "../src/turn/items.ts";
import { readWireSamples, serveSample } from "./setup/wireSamples.ts";
import type { SampleServer, WireSample } from "./setup/wireSamples.ts";

const samples = readWireSamples();

/** Classes of what goes wrong on Turnkeeper's own side: no provider sends them. */
const ownClasses = new Set(
  (
    "output_too_large unknown_agent unanswered_calls step_limit token_limit cost_limit no_progress " +
    "deadline attempts_exhausted workflow_gone internal"
  ).split(" "),
);

test("every class that comes from a provider has a sample of its wire format", () => {
  const shown = new Set(samples.map((sample) => sample.class));
  const missing = Object.keys(failureRules).filter(
    (name) => !ownClasses.has(name) && !shown.has(name as never),
  );
  expect(missing).toEqual([]);
});

test("every reason of an incomplete response has a sample", () => {
  const reasons = samples.flatMap(({ incomplete }) => incomplete ?? []);
  // `incomplete_details.reason` of the openai package's types, 7.57.0.
  expect(reasons.sort()).toEqual([
    "content_filter",
    "max_messages",
    "max_output_tokens",
    "steered",
  ]);
});

test("every sample says where it comes from, and is named for its class", () => {
  for (const { name, source, shows, class: failureClass, incomplete } of samples) {
    expect({ name, source, shows }).not.toMatchObject({ source: "" });
    expect({ name, source, shows }).not.toMatchObject({ shows: "" });
    expect(name.split(".")[0]).toBe(failureClass ?? (incomplete && "incomplete"));
  }
});

describe("an answer on the wire", () => {
  let provider: SampleServer;
  let endpoint: ModelEndpoint;

  beforeEach(() => vi.useFakeTimers({ toFake: ["Date"] }));

  afterEach(async () => {
    vi.useRealTimers();
    await endpoint.close();
    await provider.close();
  });

  async function read(sample: WireSample): Promise<{ events: UpstreamEvent[]; failure?: Failure }> {
    if (sample.now !== null) vi.setSystemTime(sample.now);
    provider = await serveSample(sample);
    // Short only where it is waited for.
    const patienceMs = sample.ending === "silence" ? 300 : 10_000;
    const key = { apiKey: "a-key-that-is-long-enough", connectTimeoutMs: 5_000 };
    endpoint = openModelEndpoint({
      ...key,
      baseUrl: provider.baseUrl,
      headersTimeoutMs: patienceMs,
    });
    const events: UpstreamEvent[] = [];
    try {
      const input = [userMessage("Hi")];
      const call = {
        model: "gpt-test",
        instructions: null,
        input,
        tools: [],
        parameters: {},
        keepAs: null,
      };
      const options = { signal: new AbortController().signal, idleTimeoutMs: patienceMs };
      for await (const event of endpoint.stream(call, options)) {
        events.push(event);
        provider.seen();
      }
      return { events };
    } catch (error) {
      if (!(error instanceof StepFailure)) throw error;
      return { events, failure: error.failure };
    }
  }

  const failed = samples.flatMap((sample) => {
    const { class: failureClass } = sample;
    return failureClass === null ? [] : [{ ...sample, failureClass }];
  });

  test.each(failed)("$name: $shows", async (sample) => {
    const { failureClass } = sample;
    const { failure } = await read(sample);
    expect(failure).toEqual({
      class: failureClass,
      code: sample.code ?? failureClass,
      message:
        sample.says === null
          ? (sample.message ?? failureRules[failureClass].meaning)
          : expect.stringContaining(sample.says),
      ...(sample.retryAfterMs === null ? {} : { retryAfterMs: sample.retryAfterMs }),
      ...(sample.requestId === null ? {} : { requestId: sample.requestId }),
    });
    // Nothing retries inside a retry [11].
    expect(provider.requests()).toBe(sample.over === "http" ? 1 : 0);
  });

  test.each(samples.filter((sample) => sample.incomplete !== null))(
    "$name: $shows",
    async (sample) => {
      const { events, failure } = await read(sample);
      expect(failure).toBeUndefined();
      expect(events.at(-1)).toMatchObject({
        type: "response.incomplete",
        response: { incomplete_details: { reason: sample.incomplete } },
      });
    },
  );
});
