import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, fault, gate, join, reasoning, text } from "../src/simulator/server.ts";
import type { AnswerStep } from "../src/simulator/script.ts";
import type { ScriptStep, SimulatedRequest } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { failure, StepFailure } from "../src/turn/failures.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import type { EndedTurn } from "./setup/turnStream.ts";
import { untilSaid } from "./setup/untilSaid.ts";

let effects = 0;

const tools = [
  defineTool({
    name: "count",
    description: "Counts its calls.",
    parameters: { type: "object", properties: { note: { type: "string" } } },
    handler: () => `${++effects}`,
  }),
];

const agents = [
  defineAgent({ name: "default", model: "gpt-test", tools: ["count"], durability: "background" }),
  defineAgent({
    name: "frugal",
    model: "gpt-test",
    durability: "background",
    limits: { maxTurnTokens: 1 },
  }),
  defineAgent({
    name: "hasty",
    model: "gpt-test",
    durability: "background",
    // So long that the first words come in time on a busy machine too.
    limits: { maxTurnMs: 2_500 },
  }),
];

const deltas = ["One", " two", " three", " four", " five"];
const whole = deltas.join("");

const isResume = ({ path }: SimulatedRequest) => path.includes("stream=true");
const isRetrieve = (request: SimulatedRequest) => request.method === "GET" && !isResume(request);

describeWith(["postgres", "temporal"], "a turn whose responses the provider keeps", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({ agents, tools });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  const start = (model = "default"): Promise<TurnHandle> =>
    deployment.turnkeeper.turns.start({ input: "Go", model });

  async function run(...script: ScriptStep[]): Promise<EndedTurn> {
    deployment.simulator.script(...script);
    return ended(await start());
  }

  /** Scripts an answer whose stream breaks behind `after` deltas; `strike` has it break. */
  function breaking(after: number, answer: AnswerStep) {
    const pause = gate(after);
    const gates = [pause, answer.options.pauseAfter ?? []].flat();
    const options = { ...answer.options, pauseAfter: gates };
    deployment.simulator.script(fault.reset(after, { ...answer, options }));
    return async (turn: TurnHandle, step = 1): Promise<void> => {
      await pause.reached;
      await expect.poll(() => keptId(turn, step)).toMatch(/^resp_/);
      pause.open();
    };
  }

  /** The response that the turn could go on with, as it is on record. */
  async function keptId(turn: TurnHandle, step = 1): Promise<string | null | undefined> {
    const [row] = await deployment.database.query<{ response_id: string | null }>(
      "SELECT response_id FROM steps WHERE turn_id = $1 AND number = $2",
      [turn.id, step],
    );
    return row?.response_id;
  }

  async function runBroken(after: number, answer: AnswerStep): Promise<EndedTurn> {
    const strike = breaking(after, answer);
    const turn = await start();
    await strike(turn);
    return ended(turn);
  }

  const isCancelled = () =>
    deployment.simulator.waitFor("finished", (billed) => billed.status === "cancelled");

  const messagesOf = ({ accumulated }: EndedTurn) =>
    accumulated.output.filter((item) => item.type === "message");

  /** Bought once, and the ledger says so to the token [7]. */
  async function expectPaidOnce({ turn }: EndedTurn, times = 1): Promise<void> {
    const { bill } = deployment.simulator;
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(bill).toHaveLength(times);
    expect(ledger).toHaveLength(times);
    for (const [at, call] of ledger.entries()) {
      expect(call).toMatchObject({
        outcome: "used",
        certainty: "exact",
        responseId: bill[at]?.responseId,
        tokens: { inputTokens: bill[at]?.inputTokens, outputTokens: bill[at]?.outputTokens },
      });
    }
  }

  test("asks the provider to keep the response, and names the turn in its metadata", async () => {
    const turn = await run(text("Fine."));
    const [request] = deployment.simulator.requests;
    expect(request?.body).toMatchObject({
      background: true,
      store: true,
      stream: true,
      metadata: { turn: turn.turn.id, step: "1" },
    });
    await expectPaidOnce(turn);
  });

  test("a stream that broke is resumed behind the last event on record, in the same item", async () => {
    const pause = gate(4);
    const strike = breaking(2, text("", { deltas, pauseAfter: pause }));
    const turn = await start();
    await strike(turn);
    const resumed = await deployment.simulator.waitFor("request", isResume);
    pause.open();
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "completed", text: whole });
    expect(messagesOf(end)).toHaveLength(1);
    expect(resumed.path).toMatch(/starting_after=\d+$/);
    await expectPaidOnce(end);
  });

  test("a response that ended meanwhile is taken: what the record lacks, and nothing twice", async () => {
    const end = await runBroken(2, text("", { deltas }));
    expect(end).toMatchObject({ status: "completed", text: whole });
    expect(messagesOf(end)).toHaveLength(1);
    expect(deployment.simulator.requests.filter(isResume)).toEqual([]);
    await expectPaidOnce(end);
  });

  test("a response that broke before its first word is gone on with all the same", async () => {
    const end = await runBroken(0, text("", { deltas }));
    expect(end).toMatchObject({ status: "completed", text: whole });
    await expectPaidOnce(end);
  });

  test("a response that is too old to be streamed is asked for until it ends", async () => {
    const pause = gate(4);
    const strike = breaking(2, text("", { deltas, pauseAfter: pause }));
    const turn = await start();
    await strike(turn);
    const retrieved = await deployment.simulator.waitFor("request", isRetrieve);
    deployment.simulator.expireStream(retrieved.path.split("/").at(-1) ?? "");
    await deployment.simulator.waitFor("request", isResume);
    pause.open();
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "completed", text: whole });
    expect(messagesOf(end)).toHaveLength(1);
    await expectPaidOnce(end);
  });

  test("a response that is gone is bought again; its text is closed as incomplete", async () => {
    const strike = breaking(2, text("", { deltas, pauseAfter: gate(4) }));
    deployment.simulator.script(text("", { deltas }));
    const turn = await start();
    await untilSaid(turn);
    const id = await keptId(turn);
    await strike(turn);
    await fetch(`${deployment.simulator.baseUrl}/responses/${id}`, {
      method: "DELETE",
      headers: { authorization: "Bearer any" },
    });
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "completed", text: whole });
    expect(messagesOf(end).map((item) => item.status)).toEqual(["incomplete", "completed"]);
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(ledger.map((call) => call.outcome)).toEqual(["wasted", "used"]);
    expect(ledger.map((call) => call.responseId)).toEqual(
      deployment.simulator.bill.map((call) => call.responseId),
    );
  });

  test("a response other than its stream began is shown anew, and not bought again", async () => {
    const strange = {
      type: "response.output_text.delta",
      sequence_number: 4,
      item_id: "msg",
      output_index: 0,
      content_index: 0,
      delta: "STRANGE",
    };
    const frame = `event: ${strange.type}\ndata: ${JSON.stringify(strange)}\n\n`;
    const end = await runBroken(2, fault.inject(1, frame, text("", { deltas })));
    expect(end).toMatchObject({ status: "completed", text: whole });
    expect(messagesOf(end).map((item) => item.status)).toEqual(["incomplete", "completed"]);
    await expectPaidOnce(end);
  });

  test.each([0, 1, 2, 3, 5, 8])(
    "reasoning, text and a tool's call that break after %i deltas come out whole, and once",
    async (after) => {
      effects = 0;
      const asked = calls([{ name: "count", arguments: { note: "a longer argument" } }]);
      const strikes = [
        breaking(after, join(reasoning("First think"), text("I count."), asked)),
        breaking(after, text("Counted it once and for all, be sure of that.")),
      ];
      const turn = await start();
      await strikes[0]?.(turn, 1);
      await strikes[1]?.(turn, 3);
      const end = await ended(turn);
      expect(end.status).toBe("completed");
      expect(end.text).toBe("I count.Counted it once and for all, be sure of that.");
      expect(effects).toBe(1);
      const types = (end.response.output as { type: string }[]).map(({ type }) => type);
      expect(types).toEqual(["reasoning", "message", "mcp_call", "message"]);
      await expectPaidOnce(end, 2);
    },
  );

  test("a failed response is not gone on with: the call is made again", async () => {
    const end = await run(fault.failed(2, "server_error"), text("", { deltas }));
    expect(end).toMatchObject({ status: "completed", text: whole });
    const ledger = await readModelCalls(deployment.database, "default", end.turn.id);
    expect(ledger.map((call) => call.outcome)).toEqual(["wasted", "used"]);
  });

  /** Starts a turn whose response has begun and stays open until somebody else ends it. */
  async function startKept(model?: string): Promise<{ turn: TurnHandle; url: string }> {
    const pause = gate(2);
    deployment.simulator.script(text("", { deltas, pauseAfter: pause }));
    const turn = await start(model);
    await pause.reached;
    await expect.poll(() => keptId(turn)).toMatch(/^resp_/);
    return { turn, url: `${deployment.simulator.baseUrl}/responses/${await keptId(turn)}` };
  }

  const ask = async (method: string, url: string) => {
    const headers = { authorization: "Bearer sk-simulated" };
    expect((await fetch(url, { method, headers })).status).toBe(200);
  };

  test("a response that was cancelled at the provider is not gone on with either", async () => {
    const { turn, url } = await startKept();
    deployment.simulator.script(text("Anew."));
    await ask("POST", `${url}/cancel`);
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "completed", text: "Anew." });
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(ledger.map((call) => call.failureClass)).toEqual(["response_cancelled", null]);
  });

  test("a response that has ended as nothing is not asked for again and again", async () => {
    const strike = breaking(2, text("", { deltas }));
    const turn = await start();
    const retrieve = vi.spyOn(deployment.endpoint, "retrieve");
    retrieve.mockImplementationOnce(async (id) => ({ id, status: "failed", output: null }));
    deployment.simulator.script(text("Anew."));
    await strike(turn);
    expect(await ended(turn)).toMatchObject({ status: "completed", text: "Anew." });
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    expect(ledger.map((call) => call.outcome)).toEqual(["wasted", "used"]);
  });

  test("[13] a response that is gone counts for the limits of the call in its place", async () => {
    const { turn, url } = await startKept("frugal");
    deployment.simulator.script(text("So far."));
    await ask("DELETE", url);
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "incomplete", text: "So far." });
    expect(end.response["incomplete_details"]).toEqual({ reason: "token_limit" });
    expect(deployment.simulator.requests.at(-1)?.items.at(-1)).toMatchObject({ role: "developer" });
  });

  test("a call in the place of a lost response waits for its model's rate limit", async () => {
    const { turn, url } = await startKept();
    const delayMs = 1_500;
    deployment.simulator.script(fault.rateLimit({ ms: delayMs }));
    const limited = await start();
    const callsOf = ({ id }: TurnHandle) => readModelCalls(deployment.database, "default", id);
    await expect.poll(async () => (await callsOf(limited))[0]?.failureClass).toBe("rate_limited");
    deployment.simulator.script(text("Anew."), text("Anew."));
    await ask("DELETE", url);
    for (const each of [turn, limited]) {
      expect(await ended(each)).toMatchObject({ status: "completed", text: "Anew." });
    }
    const [kept, anew, ...none] = await callsOf(turn);
    const [refused, again, ...more] = await callsOf(limited);
    expect([...none, ...more]).toEqual([]);
    expect([kept?.outcome, anew?.outcome]).toEqual(["wasted", "used"]);
    expect(deployment.simulator.bill).toHaveLength(4);
    for (const call of [anew, again]) {
      const waitedMs = Number(call?.startedAt) - Number(refused?.startedAt);
      // Only that it waited; the clocks of Temporal and of this process differ by a little.
      expect(waitedMs).toBeGreaterThan(delayMs * 0.9);
    }
  });

  /** A turn whose model has said something and pauses. */
  async function startPaused(): Promise<TurnHandle> {
    const pause = gate(2);
    deployment.simulator.script(text("", { deltas, pauseAfter: pause }));
    const turn = await start();
    await pause.reached;
    await untilSaid(turn);
    return turn;
  }

  test("cancelling the turn cancels the response at the provider", async () => {
    const turn = await startPaused();
    await turn.cancel();
    await isCancelled();
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "cancelled", text: "One two" });
  });

  test("a provider that is too busy to cancel the response is asked again", async () => {
    const busy = new StepFailure(failure("overloaded"));
    const cancel = vi.spyOn(deployment.endpoint, "cancel").mockRejectedValueOnce(busy);
    const turn = await startPaused();
    await turn.cancel();
    await isCancelled();
    expect(cancel).toHaveBeenCalledTimes(2);
    cancel.mockRestore();
  });

  test("a deadline cancels the response at the provider", async () => {
    deployment.simulator.script(text("", { deltas, pauseAfter: gate(2) }));
    const turn = await start("hasty");
    await isCancelled();
    expect(await ended(turn)).toMatchObject({ status: "incomplete", text: "One two" });
  });

  test("a turn that is ended while it waits to go on cancels the response too", async () => {
    const strike = breaking(2, text("", { deltas, pauseAfter: gate(4) }));
    const turn = await start();
    await strike(turn);
    await deployment.simulator.waitFor("closed");
    await deployment.temporal.workflow.getHandle(turn.id).cancel();
    await isCancelled();
    expect((await ended(turn)).status).toBe("cancelled");
  });
});
