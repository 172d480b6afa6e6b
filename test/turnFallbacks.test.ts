import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { calls, fault, text } from "../src/simulator/server.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { registerAgents } from "../src/store/agents.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
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

const fallbacks = [
  { model: "gpt-second", afterFailures: 1 },
  { model: "gpt-third", on: ["content_refused" as const] },
];
const sorry = "Nobody can answer now. Please try again in an hour.";

const answersAlways = {
  model: "gpt-first",
  fallbacks: [{ model: "gpt-second", afterFailures: 1 }],
  staticAnswer: sorry,
  limits: { maxAttemptsPerStep: 1 },
};

const punctual = { model: "gpt-first", staticAnswer: sorry, limits: { maxTurnMs: 2_000 } };

const agents = [
  defineAgent({ name: "default", model: "gpt-first", tools: ["echo"], fallbacks }),
  defineAgent({
    name: "limited",
    model: "gpt-limited",
    fallbacks: [{ model: "gpt-second", afterFailures: 1 }],
  }),
  defineAgent({ name: "patient", model: "gpt-first", fallbacks: [{ model: "gpt-second" }] }),
  defineAgent({ name: "always", ...answersAlways }),
  defineAgent({ name: "counted", ...answersAlways }),
  defineAgent({ name: "punctual", ...punctual }),
];

const soon = { ms: 1 };
const answer = "A whole answer.";

describeWith(["postgres", "temporal"], "a turn whose model fails", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({ agents, tools });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  async function run(model: string, ...script: ScriptStep[]): Promise<EndedTurn> {
    deployment.simulator.script(...script);
    return ended(await deployment.turnkeeper.turns.start({ input: "Go", model }));
  }

  const modelsCalled = () => deployment.simulator.bill.map((call) => call.model);

  test("is answered by the next one, and says that it is degraded", async () => {
    const turn = await run("default", fault.quota(), text(answer));
    expect(turn).toMatchObject({ status: "completed", text: answer });
    expect(modelsCalled()).toEqual(["gpt-first", "gpt-second"]);
    expect(turn.response).toMatchObject({
      model: "gpt-second",
      turnkeeper: { degraded: "fallback", original_model: "gpt-first" },
    });
    const ledger = await readModelCalls(deployment.database, "default", turn.turn.id);
    expect(ledger.map(({ model, outcome }) => [model, outcome])).toEqual([
      ["gpt-first", "wasted"],
      ["gpt-second", "used"],
    ]);
  });

  test("that is answered by its own model is not degraded", async () => {
    const turn = await run("default", text(answer));
    expect(turn.turn.degraded).toBeNull();
    expect(turn.response).not.toHaveProperty("turnkeeper");
  });

  test("tries its model again first, as often as the fallback says (default: twice)", async () => {
    await run("patient", fault.rateLimit(soon), fault.rateLimit(soon), text(answer));
    expect(modelsCalled()).toEqual(["gpt-first", "gpt-first", "gpt-second"]);
  });

  test("in mid-stream closes the first one's text, and the second one's is the answer", async () => {
    const turn = await run("default", fault.failed(3), text(answer));
    expect(turn).toMatchObject({ status: "completed", text: answer });
    const messages = turn.accumulated.output.filter((item) => item.type === "message");
    expect(messages.map((item) => item.status)).toEqual(["incomplete", "completed"]);
  });

  test("passes over a fallback that is not for the failure's class", async () => {
    const refused = fault.status(400, {
      body: { error: { message: "No.", type: "invalid_request_error", code: "content_filter" } },
    });
    await run("default", refused, text(answer));
    expect(modelsCalled()).toEqual(["gpt-first", "gpt-third"]);
  });

  test("fails with the request's own fault at once, whatever fallbacks there are", async () => {
    const turn = await run("default", fault.status(400));
    expect(turn.turn).toMatchObject({ status: "failed", failure: { class: "invalid_request" } });
    expect(modelsCalled()).toEqual(["gpt-first"]);
  });

  test("stays with the fallback for the rest of the turn", async () => {
    const asked = calls([{ name: "echo", arguments: {} }]);
    await run("default", fault.quota(), asked, text(answer));
    expect(modelsCalled()).toEqual(["gpt-first", "gpt-second", "gpt-second"]);
  });

  test("and whose fallbacks fail gets the static answer", async () => {
    const turn = await run("always", fault.failed(2), fault.failed(2));
    expect(turn).toMatchObject({ status: "completed", text: sorry });
    expect(turn.response).toMatchObject({ turnkeeper: { degraded: "static_answer" } });
    const ledger = await readModelCalls(deployment.database, "default", turn.turn.id);
    expect(ledger.map((call) => call.outcome)).toEqual(["wasted", "wasted"]);
    expect(turn.response["usage"]).toBeNull();
  });

  test("whose time is up before there is any text gets the static answer", async () => {
    const turn = await run("punctual", fault.silence());
    expect(turn).toMatchObject({ status: "completed", text: sorry });
    expect(turn.response).toMatchObject({ turnkeeper: { degraded: "static_answer" } });
    const ledger = await readModelCalls(deployment.database, "default", turn.turn.id);
    expect(ledger).toMatchObject([{ outcome: "wasted", failureClass: null }]);
  });

  test("whose time is up in the middle of an answer keeps that one", async () => {
    const turn = await run("punctual", fault.silence(2));
    expect(turn).toMatchObject({ status: "incomplete", text: "one two" });
    expect(turn.response["incomplete_details"]).toEqual({ reason: "deadline" });
    expect(turn.turn.degraded).toBeNull();
  });

  test("whose tools no worker has gets the static answer when its time is up", async () => {
    const agent = defineAgent({ name: "unequipped", ...punctual, tools: ["nowhere"] });
    await registerAgents(deployment.database, [agent]);
    const turn = await run("unequipped");
    expect(turn).toMatchObject({ status: "completed", text: sorry });
    expect(modelsCalled()).toEqual([]);
  });

  test("that others have found limited for long is not waited for", async () => {
    deployment.simulator.script(fault.rateLimit({ seconds: 30 }), text(answer), text(answer));
    const start = () => deployment.turnkeeper.turns.start({ input: "Go", model: "limited" });
    await ended(await start());
    expect(await ended(await start())).toMatchObject({ status: "completed", text: answer });
    expect(modelsCalled()).toEqual(["gpt-limited", "gpt-second", "gpt-second"]);
  });

  test("is counted by day and agent", async () => {
    await run("counted", fault.failed(2), fault.failed(2));
    const [row] = await deployment.database.query<Record<string, unknown>>(
      `SELECT turns, fallbacks, static_answers, fallback_rate::float8 FROM fallbacks_by_day
       WHERE project_id = 'default' AND agent = 'counted'`,
      [],
    );
    expect(row).toEqual({ turns: 1, fallbacks: 0, static_answers: 1, fallback_rate: 1 });
  });
});
