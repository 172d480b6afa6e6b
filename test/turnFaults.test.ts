import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { apiError } from "../src/simulator/fault.ts";
import { anyFreePort } from "../src/dev/ports.ts";
import { calls, fault, gate, startSimulator, text } from "../src/simulator/server.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { createConversation, readHistory } from "../src/store/conversations.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import type { TurnLimits } from "../src/turn/limits.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import type { EndedTurn } from "./setup/turnStream.ts";

const tools = [
  defineTool({
    name: "echo",
    description: "Answers at once.",
    parameters: { type: "object", properties: {} },
    handler: () => "echo",
  }),
];

/** Each has a model of its own, because a rate limit is shared by the turns of one model. */
const agent = (name: string, limits: Partial<TurnLimits> = {}) =>
  defineAgent({ name, model: `gpt-${name}`, tools: ["echo"], limits });

const agents = [
  agent("default"),
  agent("twice", { maxAttemptsPerStep: 2 }),
  // So long that the first words come in time on a busy machine too.
  agent("hasty", { maxTurnMs: 2_500 }),
  agent("terse", { maxOutputBytes: 1_000 }),
  agent("impatient", { idleTimeoutMs: 200 }),
  agent("patient", { maxTurnMs: 60 * 24 * 60 * 60_000 }),
  agent("leaving"),
];

const answer = "A whole answer.";
const quotaCodes = [
  "insufficient_quota",
  "credit_balance_exhausted",
  "organization_spend_limit_exceeded",
  "project_spend_limit_exceeded",
  "organization_usage_limit_exceeded",
  "billing_hard_limit_reached",
  "billing_not_active",
];
const cancelledResponse = () =>
  fault.status(200, {
    body: { id: "resp_1", object: "response", status: "cancelled", output: [] },
  });
const eightWords = "one two three four five six seven eight";

describeWith(["postgres", "temporal"], "a turn whose model call goes wrong", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({ agents, tools });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  const start = (model = "default", more: object = {}): Promise<TurnHandle> =>
    deployment.turnkeeper.turns.start({ input: "Go", model, ...more });

  async function run(model: string, ...script: ScriptStep[]): Promise<EndedTurn> {
    deployment.simulator.script(...script);
    const turn = await ended(await start(model));
    await expectLedger(turn);
    return turn;
  }

  /** One row for every call that the provider billed, with the provider's figures [7]. */
  async function expectLedger({ turn }: EndedTurn): Promise<void> {
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    const { bill, requests } = deployment.simulator;
    expect(ledger).toHaveLength(bill.length);
    // Nothing retries inside a retry [11].
    expect(requests).toHaveLength(ledger.length);
    for (const [at, call] of ledger.entries()) {
      const billed = bill[at];
      expect(call.endedAt).not.toBeNull();
      // A connection that broke before the headers has not told its request's id.
      if (call.requestId !== null) expect(call.requestId).toBe(billed?.requestId);
      if (call.outcome !== "used") continue;
      expect(call).toMatchObject({
        requestId: billed?.requestId,
        responseId: billed?.responseId,
        certainty: "exact",
        failureClass: null,
        tokens: {
          inputTokens: billed?.inputTokens,
          cachedTokens: billed?.cachedTokens,
          outputTokens: billed?.outputTokens,
          reasoningTokens: billed?.reasoningTokens,
        },
      });
    }
    const used = ledger.filter((call) => call.outcome === "used");
    const tokens = used.map((call) => call.tokens?.outputTokens ?? 0);
    const sum = tokens.reduce((all, each) => all + each, 0);
    expect(turn.usage?.output_tokens ?? 0).toBe(sum);
  }

  async function failureClasses({ turn }: EndedTurn): Promise<(string | null)[]> {
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    return ledger.map((call) => call.failureClass);
  }

  test.each<[string, ScriptStep, string]>([
    ["a rate limit", fault.rateLimit({ ms: 20 }), "rate_limited"],
    ["a rate limit that resets", fault.rateLimit({ resetRequests: "20ms" }), "rate_limited"],
    ["an overload", fault.status(503), "overloaded"],
    ["a server error", fault.status(500), "server_error"],
    ["a timeout of the provider", fault.status(408), "server_error"],
    ["a conflict", fault.status(409), "server_error"],
    [
      "a refusal that says to retry",
      fault.status(400, { headers: { "x-should-retry": "true" } }),
      "server_error",
    ],
    ["a connection that breaks at once", fault.destroy(), "transport"],
    ["a connection that breaks in mid-stream", fault.reset(3), "stream_reset"],
    ["a stream without a terminal event", fault.eof(3), "stream_truncated"],
    ["an error event", fault.errorEvent(3), "server_error"],
    ["an error event for an overload", fault.errorEvent(3, { code: "slow_down" }), "overloaded"],
    ["a response that was cancelled", cancelledResponse(), "response_cancelled"],
    ["a response that failed", fault.failed(3), "response_failed"],
    ["a response that failed before it said anything", fault.failed(0), "response_failed"],
    ["a body that is not JSON", fault.notJson(), "malformed_answer"],
    ["a frame that is not JSON", fault.malformed(3), "stream_truncated"],
  ])("is called again after %s, and the stream is exact", async (_, step, failureClass) => {
    const turn = await run("default", step, text(answer));
    expect(turn).toMatchObject({ status: "completed", text: answer });
    expect(await failureClasses(turn)).toEqual([failureClass, null]);
  });

  test("is called again after a silence longer than the idle timeout", async () => {
    const turn = await run("impatient", fault.silence(3), text(answer));
    expect(turn).toMatchObject({ status: "completed", text: answer });
    expect(await failureClasses(turn)).toEqual(["stream_silent", null]);
  });

  test("goes on past an event that nobody knows", async () => {
    const turn = await run("default", fault.unknownEvent(3));
    expect(turn).toMatchObject({ status: "completed", text: eightWords });
  });

  test("of what subscribers saw of an abandoned call, closes the text and leaves it out", async () => {
    const turn = await run("default", fault.reset(3), fault.eof(5), text(answer));
    const closed = turn.events.filter((event) => event.type === "response.output_item.done");
    expect(closed.map((event) => (event["item"] as { status: string }).status)).toEqual([
      "incomplete",
      "incomplete",
      "completed",
    ]);
    expect(turn.response.output).toHaveLength(1);
    const history = await readHistory(deployment.database, "default", turn.turn.conversationId);
    expect(history).toHaveLength(2);
  });

  test.each<[string, ScriptStep, string, string]>([
    ...quotaCodes.map((code): [string, ScriptStep, string, string] => [
      `a limit that is used up (${code})`,
      fault.quota(code),
      "quota_exhausted",
      code,
    ]),
    [
      "a quota that is used up in mid-stream",
      fault.errorEvent(3, { code: "insufficient_quota" }),
      "quota_exhausted",
      "insufficient_quota",
    ],
    [
      "a previous response that is not there",
      fault.status(400, {
        body: apiError("Not found.", "invalid_request_error", "previous_response_not_found"),
      }),
      "previous_response_not_found",
      "previous_response_not_found",
    ],
    ["a model that is not there", fault.modelNotFound("x"), "model_not_found", "model_not_found"],
    [
      "a context that is too long",
      fault.contextLength(),
      "context_overflow",
      "context_length_exceeded",
    ],
    ["a refused request", fault.status(400), "invalid_request", "invalid_request"],
    ["a refused key", fault.status(401), "authentication", "authentication"],
    ["a refused prompt", fault.failed(2, "invalid_prompt"), "content_refused", "invalid_prompt"],
  ])("fails without another call after %s", async (_, step, failureClass, code) => {
    const turn = await run("default", step);
    expect(turn).toMatchObject({
      status: "failed",
      text: "",
      turn: { failure: { class: failureClass, code } },
    });
    expect(turn.response["error"]).toMatchObject({ message: expect.any(String) as string });
    expect(await failureClasses(turn)).toEqual([failureClass]);
    const history = await readHistory(deployment.database, "default", turn.turn.conversationId);
    expect(history).toEqual([]);
  });

  test("fails with the last failure when a step has failed as often as it may", async () => {
    const turn = await run("twice", fault.status(503), fault.failed(2));
    expect(turn).toMatchObject({
      status: "failed",
      turn: { failure: { class: "response_failed" } },
    });
    expect(await failureClasses(turn)).toEqual(["overloaded", "response_failed"]);
  });

  test("counts failed calls, not attempts that other things have cost", async () => {
    const { simulator, database } = deployment;
    const release = Promise.withResolvers<void>();
    const refuse = async () => {
      await release.promise;
      return fault.rateLimit({ ms: 10 });
    };
    simulator.script(refuse, text(answer));
    const turn = await start("twice");
    await simulator.waitFor("request");
    const raise = "UPDATE steps SET attempt = 4, token = '' WHERE turn_id = $1";
    await database.query(raise, [turn.id]);
    release.resolve();
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
    expect(await readModelCalls(database, "default", turn.id)).toHaveLength(2);
  });

  test("waits as long as the provider says", async () => {
    const waitMs = 700;
    const { simulator } = deployment;
    simulator.script(fault.rateLimit({ ms: waitMs }), text(answer));
    const turn = await start();
    await simulator.waitFor("finished");
    const refusedAt = performance.now();
    await simulator.waitFor("request", ({ index }) => index === 1);
    // Only that it waited; Temporal's clock and this one may differ by a little.
    expect(performance.now() - refusedAt).toBeGreaterThan(waitMs * 0.9);
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
  });

  test.each(["max_output_tokens", "content_filter", "max_messages", "steered"] as const)(
    "of a response that is incomplete for %s keeps the text and the reason",
    async (reason) => {
      const turn = await run("default", fault.incomplete(3, reason));
      expect(turn).toMatchObject({ status: "incomplete", text: "one two three" });
      expect(turn.response["incomplete_details"]).toEqual({ reason });
      expect(turn.response["error"]).toBeNull();
      expect(await failureClasses(turn)).toEqual([null]);
      const history = await readHistory(deployment.database, "default", turn.turn.conversationId);
      expect(history).toHaveLength(2);
    },
  );

  test.each([
    ["a NUL and half a character", "odd \0 \ud800", "odd \ufffd \ufffd"],
    ["no end", "x".repeat(5_000), "x".repeat(64)],
    ["no text", { odd: true }, "unknown"],
  ])("of a response that is incomplete for a reason with %s keeps the text", async (...row) => {
    const [, said, reason] = row;
    const turn = await run("default", fault.incomplete(3, said as never));
    expect(turn).toMatchObject({ status: "incomplete", text: "one two three" });
    expect(turn.response["incomplete_details"]).toEqual({ reason });
  });

  test("runs no call of a response that is incomplete", async () => {
    const asks = calls([{ name: "echo", arguments: { a: "b" } }]);
    const turn = await run("default", fault.incomplete(1, "max_output_tokens", asks));
    expect(turn.status).toBe("incomplete");
    expect(turn.response.output).toEqual([]);
  });

  test("ends at its deadline with the partial answer", async () => {
    const turn = await run("hasty", fault.silence(3));
    expect(turn).toMatchObject({ status: "incomplete", text: "one two three" });
    expect(turn.response["incomplete_details"]).toEqual({ reason: "deadline" });
    expect(turn.response.output).toMatchObject([{ status: "incomplete" }]);
    await deployment.simulator.waitFor("aborted");
  });

  test("ends at its deadline while it waits for a retry that comes later", async () => {
    const turn = await run("hasty", fault.rateLimit({ seconds: 60 }));
    expect(turn.response["incomplete_details"]).toEqual({ reason: "deadline" });
  });

  test("with a deadline beyond what a timer can wait runs to its end", async () => {
    expect(await run("patient", text(answer))).toMatchObject({ status: "completed" });
  });

  test("fails when the model writes more than it may in one turn", async () => {
    const turn = await run("terse", text("x".repeat(1_001)));
    expect(turn).toMatchObject({
      status: "failed",
      turn: { failure: { class: "output_too_large" } },
    });
    await deployment.simulator.waitFor("closed");
    deployment.simulator.reset();
    const said = "y".repeat(600);
    const asks = calls([{ name: "echo", arguments: {} }], { text: said });
    const rounds = await run("terse", asks, text(said));
    expect(rounds).toMatchObject({ turn: { failure: { class: "output_too_large" } } });
  });

  test("fails when its agent's version is gone", async () => {
    const { simulator, database, turnkeeper } = deployment;
    const conversation = (await createConversation(database, "default", {}, [])).id;
    const pause = gate(1);
    simulator.script(text(answer, { pauseAfter: pause }));
    const first = await start("default", { conversation });
    await pause.reached;
    const queued = await turnkeeper.turns.start(
      { input: "Go", model: "leaving", conversation },
      { whenBusy: "queue" },
    );
    await database.query("DELETE FROM agents WHERE name = 'leaving'");
    pause.open();
    await ended(first);
    const turn = await ended(queued);
    expect(turn).toMatchObject({ status: "failed", turn: { failure: { class: "unknown_agent" } } });
    expect(await readModelCalls(database, "default", queued.id)).toEqual([]);
  });

  test("with a model's name of any length reaches the provider", async () => {
    const model = `gpt-${"x".repeat(200)}`;
    const turn = await run(model, text(answer));
    expect(turn.status).toBe("completed");
    expect(deployment.simulator.requests[0]?.body.model).toBe(model);
  });
});

describeWith(["postgres", "temporal"], "a turn that starts while its model server is away", () => {
  test("completes once the server is there", async () => {
    const port = await anyFreePort();
    const deployment = await deploy({ openaiBaseUrl: `http://127.0.0.1:${port}/v1` });
    const turn = await deployment.turnkeeper.turns.start({ input: "Go" });
    const ledger = () => readModelCalls(deployment.database, "default", turn.id);
    await expect.poll(async () => (await ledger()).length).toBeGreaterThan(1);
    const server = await startSimulator({ mode: "scripted", port });
    server.script(text(answer));
    expect(await ended(turn)).toMatchObject({ status: "completed", text: answer });
    const [last, ...before] = (await ledger()).toReversed();
    expect(last).toMatchObject({ outcome: "used", failureClass: null });
    expect(new Set(before.map((call) => call.failureClass))).toEqual(new Set(["transport"]));
    await deployment.close();
    await server.close();
  });
});
