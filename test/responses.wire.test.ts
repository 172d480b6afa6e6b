import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { classifyProviderError } from "../src/responses/failures.ts";
import { openModelEndpoint } from "../src/responses/call.ts";
import type { ModelEndpoint, UpstreamEvent } from "../src/responses/call.ts";
import { ModelStreamTranslator } from "../src/events/translator.ts";
import { failureRules, StepFailure } from "../src/turn/failures.ts";
import type { Failure } from "../src/turn/failures.ts";
import { outputText, userMessage } from "../src/turn/items.ts";
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

test("every class was recorded by somebody", () => {
  const known = samples.filter(({ recorded, seen }) => recorded !== null || seen !== null);
  const recorded = new Set(known.map((sample) => sample.class));
  const written = samples.map((sample) => sample.class).filter((name) => !recorded.has(name));
  expect(written).toEqual([]);
});

test("every reason of an incomplete response has a sample", () => {
  const reasons = new Set(samples.flatMap(({ incomplete }) => incomplete ?? []));
  // `incomplete_details.reason` of the openai package's types, 7.57.0.
  expect([...reasons].sort()).toEqual([
    "content_filter",
    "max_messages",
    "max_output_tokens",
    "steered",
  ]);
});

test("a sentence that quotes something is not taken for the provider's own", () => {
  const quoted = (sentence: string) =>
    `1 validation error for Request: input.0.content, input_value='${sentence}'`;
  const classOf = (status: number, message: string) =>
    classifyProviderError({ status, message }).class;
  const sentences = [
    "we exceeded the rate limit",
    "I have run out of credits",
    "selected model is at capacity",
    "incorrect API key provided",
  ];
  for (const each of sentences) expect(classOf(400, quoted(each))).toBe("invalid_request");
  expect(classOf(429, "Rate limit of requests with a context window above 200k")).toBe(
    "rate_limited",
  );
  expect(classOf(429, "The request rate exceeds the configured limit of 60")).toBe("rate_limited");
  expect(classOf(503, "The model is loading (max context length 4096)")).toBe("overloaded");
  expect(classOf(500, "A tool said 'prompt is too long'")).toBe("server_error");
  expect(classOf(403, "Your plan has no context window above 128k")).toBe("authentication");
});

test.each([
  ["Limit 30000, Requested 30601", "context_overflow"],
  ["Limit: 30,000, Requested: 30,601", "context_overflow"],
  ["Limit 30000, Used 29800, Requested 546", "rate_limited"],
  ["Limit 30,000, Requested 546", "rate_limited"],
])("a request that is too large (%s) is %s", (figures, expected) => {
  const message = `Request too large for gpt-test on tokens per min (TPM): ${figures}.`;
  const error = { status: 429, code: "rate_limit_exceeded", message };
  expect(classifyProviderError(error).class).toBe(expected);
});

test("every sample says where it comes from, and is named for its class", () => {
  for (const sample of samples) {
    const { name, recorded, seen, source, class: failureClass, incomplete, text } = sample;
    const origins = [recorded, seen, source].filter((origin) => origin !== null);
    expect({ name, origins }).toEqual({ name, origins: [expect.stringMatching(/./)] });
    expect(sample).not.toMatchObject({ shows: "" });
    const kind = (incomplete && "incomplete") ?? (text && "completed");
    expect(name.split(".")[0]).toBe(failureClass ?? kind);
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
      const { signal } = new AbortController();
      const options = { signal, idleTimeoutMs: patienceMs, confirm: async () => {} };
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

  test.each(samples.filter(({ text }) => text !== null))("$name: $shows", async (sample) => {
    const { events, failure } = await read(sample);
    expect(failure).toBeUndefined();
    expect(events.at(-1)?.type).toBe("response.completed");
    const translator = new ModelStreamTranslator({
      firstOutputIndex: 0,
      isServerCall: () => false,
    });
    const shown = events.flatMap((event) => translator.translate(event));
    const { output } = events.at(-1)!["response"] as { output: unknown[] };
    const { events: late, output: whole } = translator.finish(output);
    // Everything came while it streamed, in its own item.
    expect(late).toEqual([]);
    const text = JSON.parse(sample.text ?? "") as string;
    expect(outputText(whole.items)).toBe(text);
    expect(whole.items.map(({ type }) => type)).toEqual(
      (output as { type: string }[]).map(({ type }) => type),
    );
    const deltas = shown.filter(({ type }) => type === "response.output_text.delta");
    expect(deltas.map((event) => event["delta"]).join("")).toBe(text);
    const ids = new Set(deltas.map((event) => event["item_id"]));
    expect(ids).toEqual(new Set([whole.items.at(-1)?.id]));
  });
});

interface Recorder {
  baseUrl: string;
  /** The next file that it has written, as text. */
  kept(): Promise<string>;
}

async function startRecorder(providerUrl: string): Promise<Recorder> {
  const folder = await mkdtemp(join(tmpdir(), "wire-"));
  const script = fileURLToPath(new URL("wire/record.ts", import.meta.url));
  const recorder = spawn(process.execPath, [script, providerUrl, folder]);
  onTestFinished(async () => {
    recorder.kill();
    await once(recorder, "exit");
    await rm(folder, { recursive: true });
  });
  const lines = createInterface(recorder.stdout)[Symbol.asyncIterator]();
  const nextLine = async () => String((await lines.next()).value);
  return { baseUrl: await nextLine(), kept: async () => readFile(await nextLine(), "utf8") };
}

async function serve(sample: Partial<WireSample>): Promise<SampleServer> {
  const provider = await serveSample({ ...samples[0]!, ...sample });
  onTestFinished(provider.close);
  return provider;
}

test("a recording is the bytes as they came, without what names an account", async () => {
  const account = "set-cookie: a=1\r\nllm_provider-openai-organization: org-1\r\n";
  const head = `HTTP/1.1 429 Too Many Requests\r\n${account}content-length: 3\r\n\r\n`;
  const provider = await serve({ ending: "end", bytes: Buffer.from(`${head}\u00e9!`) });
  const recorder = await startRecorder(provider.baseUrl);
  const answer = await fetch(`${recorder.baseUrl}/responses`, { method: "POST", body: "{}" });
  expect([answer.status, await answer.text()]).toEqual([429, "\u00e9!"]);
  await provider.close();
  const kept = await recorder.kept();
  expect(kept).toMatch(/^# recorded: 127\.0\.0\.1:\d+, \d{4}-\d\d-\d\d\n/);
  expect(kept.endsWith(`${head.replace(account, "")}\u00e9!`)).toBe(true);
});

test.each([
  ["closed", { ending: "cut" }, "ending: cut"],
  ["reset", { ending: "reset" }, "ending: reset"],
  ["refused", { over: "a closed port" }, "over: a closed port"],
] as const)("a connection that is %s before any byte is recorded", async (_, sample, says) => {
  const provider = await serve({ ...sample, bytes: Buffer.alloc(0) });
  const recorder = await startRecorder(provider.baseUrl);
  const answer = fetch(`${recorder.baseUrl}/responses`, { method: "POST", body: "{}" });
  await expect(answer).rejects.toThrow("fetch failed");
  expect((await recorder.kept()).split("\n").slice(3)).toEqual([`# ${says}`, ""]);
});
