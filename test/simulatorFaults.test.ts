import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { always, fault, text } from "../src/simulator/server.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { useSimulator } from "./setup/useSimulator.ts";

const { simulator, client } = await useSimulator();

const request = { model: "gpt-6-luna", input: "hi" };

async function readStream(step: ScriptStep): Promise<{ types: string[]; error: unknown }> {
  simulator.script(step);
  const types: string[] = [];
  try {
    for await (const event of await client.responses.create({ ...request, stream: true })) {
      types.push(event.type);
    }
  } catch (error) {
    return { types, error };
  }
  return { types, error: undefined };
}

const deltas = (types: string[]) =>
  types.filter((type) => type === "response.output_text.delta").length;

const SOON = { headers: { "retry-after-ms": "1" } };

describe("the SDK meets each status as it does the real API's", () => {
  const cases = [
    [400, 1, OpenAI.BadRequestError],
    [401, 1, OpenAI.AuthenticationError],
    [402, 1, OpenAI.APIError],
    [403, 1, OpenAI.PermissionDeniedError],
    [404, 1, OpenAI.NotFoundError],
    [408, 3, OpenAI.APIError],
    [409, 3, OpenAI.ConflictError],
    [413, 1, OpenAI.APIError],
    [422, 1, OpenAI.UnprocessableEntityError],
    [429, 3, OpenAI.RateLimitError],
    [500, 3, OpenAI.InternalServerError],
    [502, 3, OpenAI.InternalServerError],
    [503, 3, OpenAI.InternalServerError],
    [529, 3, OpenAI.InternalServerError],
  ] as const;
  test.each(cases)("%i: %i requests", async (status, requests, errorClass) => {
    simulator.script(always(fault.status(status, SOON)));
    const answer = client.responses.create(request, { maxRetries: 2 });
    await expect(answer).rejects.toSatisfy(
      (error) => error instanceof errorClass && error.status === status,
    );
    expect(simulator.requests).toHaveLength(requests);
    expect(simulator.bill.every((call) => call.status === "rejected")).toBe(true);
  });
});

test("rate limits say when to come back, in every form", async () => {
  const date = new Date("2030-01-01T00:00:00Z");
  const forms = [
    [{ seconds: 7 }, "retry-after", "7"],
    [{ date }, "retry-after", "Tue, 01 Jan 2030 00:00:00 GMT"],
    [{ ms: 150 }, "retry-after-ms", "150"],
    [{ resetRequests: "6m0s" }, "x-ratelimit-reset-requests", "6m0s"],
    [{ resetTokens: "1s" }, "x-ratelimit-reset-tokens", "1s"],
  ] as const;
  for (const [after, header, value] of forms) {
    simulator.script(fault.rateLimit(after));
    const error = await client.responses.create(request).catch((thrown: unknown) => thrown);
    if (!(error instanceof OpenAI.RateLimitError)) throw error;
    expect(error.code).toBe("rate_limit_exceeded");
    expect(error.headers.get(header)).toBe(value);
  }
});

test("errors that no retry can mend have their own codes", async () => {
  const steps = [fault.quota(), fault.modelNotFound("gpt-0"), fault.contextLength()];
  const codes: unknown[] = [];
  for (const step of steps) {
    simulator.script(step);
    const error = await client.responses.create(request).catch((thrown: unknown) => thrown);
    codes.push(error instanceof OpenAI.APIError && [error.status, error.code]);
  }
  expect(codes).toEqual([
    [429, "insufficient_quota"],
    [404, "model_not_found"],
    [400, "context_length_exceeded"],
  ]);
});

test("a status can come with any body, HTML included", async () => {
  simulator.script(fault.status(502, { body: "<html>Bad gateway</html>" }));
  await expect(client.responses.create(request)).rejects.toThrow("<html>Bad gateway</html>");
});

test("a socket that closes before the headers is a connection error, and the POST is sent again", async () => {
  simulator.script(fault.destroy(), text("second try"));
  const answer = await client.responses.create(request, { maxRetries: 1 });
  expect(answer.output_text).toBe("second try");
  simulator.script(fault.destroy());
  await expect(client.responses.create(request)).rejects.toThrow(OpenAI.APIConnectionError);
});

test("a reset in the middle is a bare TypeError after all deltas that were sent", async () => {
  const { types, error } = await readStream(fault.reset(3));
  expect(error).toBeInstanceOf(TypeError);
  expect(String(error)).toContain("terminated");
  expect(deltas(types)).toBe(3);
  expect(await simulator.waitFor("aborted")).toMatchObject({
    status: "aborted",
    aborted: true,
    outputTokens: 4,
    finalEventSent: false,
  });
});

test("a clean end without a terminal event throws nothing", async () => {
  const { types, error } = await readStream(fault.eof(2));
  expect(error).toBeUndefined();
  expect(types.at(-1)).toBe("response.output_text.delta");
  simulator.script(fault.eof(0));
  const final = await client.responses.stream(request).finalResponse();
  expect(final.status).toBe("in_progress");
});

test("an error frame throws an APIError without a status but with its code", async () => {
  const { types, error } = await readStream(fault.errorEvent(1, { code: "rate_limit_exceeded" }));
  expect(deltas(types)).toBe(1);
  if (!(error instanceof OpenAI.APIError)) throw error;
  expect([error.status, error.code]).toEqual([undefined, "rate_limit_exceeded"]);
  expect(error.requestID).toMatch(/^req_/);
});

test("an error without an event line passes as an ordinary event", async () => {
  const { types, error } = await readStream(fault.errorEvent(1, { eventLine: false }));
  expect(error).toBeUndefined();
  expect(types.at(-1)).toBe("error");
});

test("a failed response ends with its error and the text so far", async () => {
  simulator.script(fault.failed(2, "server_error"), fault.failed(2, "server_error"));
  const final = await client.responses.create(request);
  expect(final).toMatchObject({ status: "failed", error: { code: "server_error" }, usage: null });
  expect(final.output_text).toBe("one two");
  const events = [];
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    events.push(event);
  }
  expect(events.at(-1)).toMatchObject({
    type: "response.failed",
    response: { error: { code: "server_error" } },
  });
});

test.each(["max_output_tokens", "max_messages", "content_filter", "steered"] as const)(
  "an answer that is incomplete for %s closes its open item",
  async (reason) => {
    const { types } = await readStream(fault.incomplete(2, reason));
    expect(types.slice(-4)).toEqual([
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.incomplete",
    ]);
    simulator.script(fault.incomplete(2, reason));
    const final = await client.responses.create(request);
    expect(final).toMatchObject({ status: "incomplete", incomplete_details: { reason } });
    expect(final.output[0]).toMatchObject({ status: "incomplete" });
    expect(final.usage?.output_tokens).toBe(2);
  },
);

test("max_output_tokens of the request ends a longer answer", async () => {
  simulator.script(text("word ".repeat(100)));
  const final = await client.responses.create({ ...request, max_output_tokens: 16 });
  expect(final.incomplete_details).toEqual({ reason: "max_output_tokens" });
});

test("unknown events and broken frames are in the stream where the script puts them", async () => {
  const unknown = await readStream(fault.unknownEvent(1));
  expect(unknown.types).toContain("response.future_thing.delta");
  expect(unknown.types.at(-1)).toBe("response.completed");
  const malformed = await readStream(fault.malformed(1));
  expect(malformed.error).toBeInstanceOf(SyntaxError);
  expect(deltas(malformed.types)).toBe(1);
});

test("a body that is not JSON is a parse error", async () => {
  simulator.script(fault.notJson());
  await expect(client.responses.create(request)).rejects.toThrow(SyntaxError);
});

test("silence in the middle lasts until the client leaves; only what was produced is billed", async () => {
  simulator.script(fault.silence(2));
  const stream = await client.responses.create({ ...request, stream: true });
  const types: string[] = [];
  const reading = (async () => {
    for await (const event of stream) types.push(event.type);
  })();
  await simulator.waitFor("delta", (delta) => delta.count === 2);
  expect(simulator.connections()).toBe(1);
  stream.controller.abort();
  await reading;
  expect(deltas(types)).toBeLessThanOrEqual(2);
  const billed = await simulator.waitFor("aborted");
  expect(billed).toMatchObject({ aborted: true, outputTokens: 2 });
});

test("silence before the headers lasts until the client leaves", async () => {
  simulator.script(fault.silence());
  const controller = new AbortController();
  const answer = client.responses.create(request, { signal: controller.signal });
  await simulator.waitFor("request");
  controller.abort();
  await expect(answer).rejects.toThrow(OpenAI.APIUserAbortError);
  expect(await simulator.waitFor("aborted")).toMatchObject({ responseId: null });
});
