import { afterAll, expect, test, vi } from "vitest";
import { openModelEndpoint, RequestLate } from "../src/responses/call.ts";
import { apiError, fault } from "../src/simulator/fault.ts";
import { text } from "../src/simulator/server.ts";
import { userMessage } from "../src/turn/items.ts";
import { useSimulator } from "./setup/useSimulator.ts";

const { simulator } = await useSimulator();
const endpoint = openModelEndpoint({
  baseUrl: simulator.baseUrl,
  apiKey: "sk-simulated",
  connectTimeoutMs: 2_000,
  headersTimeoutMs: 5_000,
});

afterAll(() => endpoint.close());

/** Makes a call to its end. Returns the type of its last event. */
async function call(sendBy: number): Promise<string | undefined> {
  const input = [userMessage("hello")];
  const call = { model: "gpt-test", instructions: null, input, tools: [], parameters: {} };
  const options = { signal: new AbortController().signal, idleTimeoutMs: 5_000, sendBy };
  const events = await Array.fromAsync(endpoint.stream({ ...call, keepAs: null }, options));
  return events.at(-1)?.type;
}

test("a request is not sent once the moment is over by which it had to leave", async () => {
  simulator.script(text("one"), text("two"));
  expect(await call(Infinity)).toBe("response.completed");
  await expect(call(Date.now() - 1)).rejects.toThrow(RequestLate);
  expect(simulator.requests).toHaveLength(1);
  expect(await call(Infinity)).toBe("response.completed");
});

test("a model without encrypted reasoning is remembered though the next request came too late", async () => {
  const sendBy = Date.now() + 200;
  simulator.script(async () => {
    await vi.waitUntil(() => Date.now() > sendBy, { timeout: 20_000, interval: 5 });
    const message = "Encrypted content is not supported.";
    const refusal = apiError(message, "invalid_request_error", null, "include");
    return fault.status(400, { body: refusal });
  }, text("ok"));
  await expect(call(sendBy)).rejects.toThrow(RequestLate);
  expect(await call(Infinity)).toBe("response.completed");
  const included = simulator.requests.map(({ body }) => body["include"]);
  expect(included).toEqual([["reasoning.encrypted_content"], undefined]);
});
