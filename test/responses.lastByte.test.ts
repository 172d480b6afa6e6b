import { createServer as createHttpServer } from "node:http";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { afterAll, expect, test, vi } from "vitest";
import { openModelEndpoint } from "../src/responses/call.ts";
import { apiError, fault } from "../src/simulator/fault.ts";
import { text } from "../src/simulator/server.ts";
import { StepFailure } from "../src/turn/failures.ts";
import { userMessage } from "../src/turn/items.ts";
import { useSimulator } from "./setup/useSimulator.ts";

const { simulator } = await useSimulator();
const open = (baseUrl: string) =>
  openModelEndpoint({
    baseUrl,
    apiKey: "sk-simulated",
    connectTimeoutMs: 2_000,
    headersTimeoutMs: 20_000,
  });
const endpoint = open(simulator.baseUrl);

afterAll(() => endpoint.close());

/** Makes a call to its end. Returns the type of its last event. */
async function call(
  confirm: () => Promise<void>,
  { to = endpoint, says = "hello", signal = new AbortController().signal } = {},
): Promise<string | undefined> {
  const input = [userMessage(says)];
  const call = { model: "gpt-test", instructions: null, input, tools: [], parameters: {} };
  const options = { signal, idleTimeoutMs: 5_000, confirm };
  const events = await Array.fromAsync(to.stream({ ...call, keepAs: null }, options));
  return events.at(-1)?.type;
}

/** A server that never answers, and what it has been sent. */
async function openSink() {
  const sink = { sent: "", baseUrl: "", close: () => server.close() };
  const server = createServer((socket) => {
    socket.on("data", (part) => (sink.sent += part.toString())).on("error", () => {});
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  sink.baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
  return sink;
}

/** How many bytes of its body the request still lacks; `null` before its headers are there. */
function missingBytes(sent: string): number | null {
  const bodyAt = sent.indexOf("\r\n\r\n");
  const length = /content-length: (\d+)/i.exec(sent)?.[1];
  return bodyAt < 0 || length === undefined ? null : Number(length) - (sent.length - bodyAt - 4);
}

test.each([
  ["short", "hello"],
  ["longer than what a socket takes at once", "hello ".repeat(1_000_000)],
])("a %s request is asked about when all of it but one byte has left", async (_, says) => {
  const sink = await openSink();
  const to = open(sink.baseUrl);
  const stop = new AbortController();
  const done = new Error("The test has seen enough.");
  const seen: (number | null)[] = [];
  const confirm = async () => {
    await vi.waitUntil(() => missingBytes(sink.sent) === 1, { timeout: 20_000, interval: 5 });
    seen.push(missingBytes(sink.sent));
    void vi
      .waitUntil(() => missingBytes(sink.sent) === 0, { timeout: 20_000, interval: 5 })
      .finally(() => stop.abort(done));
  };
  await expect(call(confirm, { to, says, signal: stop.signal })).rejects.toBe(done);
  expect(seen).toEqual([1]);
  expect(missingBytes(sink.sent)).toBe(0);
  await to.close();
  sink.close();
});

test("a request that is not confirmed is never whole, and fails with the reason", async () => {
  simulator.script(text("one"), text("two"));
  expect(await call(async () => {})).toBe("response.completed");
  const reason = new Error("Somebody else has it.");
  await expect(call(() => Promise.reject(reason))).rejects.toBe(reason);
  expect(await call(async () => {})).toBe("response.completed");
  expect(simulator.requests).toHaveLength(2);
});

test("a model without encrypted reasoning is remembered though the next request was withheld", async () => {
  const reason = new Error("Somebody else has it.");
  const message = "Encrypted content is not supported.";
  const refusal = apiError(message, "invalid_request_error", null, "include");
  simulator.script(fault.status(400, { body: refusal }), text("ok"));
  const confirm = vi.fn<() => Promise<void>>(async () => {});
  confirm.mockResolvedValueOnce().mockRejectedValueOnce(reason);
  await expect(call(confirm)).rejects.toBe(reason);
  expect(await call(confirm)).toBe("response.completed");
  const included = simulator.requests.map(({ body }) => body["include"]);
  expect(included).toEqual([["reasoning.encrypted_content"], undefined]);
});

test("a redirect, after which fetch sends no body, ends in what stands there", async () => {
  const server = createHttpServer((request, response) => {
    const isMoved = request.method === "POST";
    response.writeHead(isMoved ? 301 : 404, { location: "/elsewhere" }).end();
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const to = open(`http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`);
  const error = await call(async () => {}, { to }).catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(StepFailure);
  expect((error as StepFailure).failure.class).toBe("invalid_request");
  await to.close();
  server.close();
});
