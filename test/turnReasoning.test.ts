import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { apiError } from "../src/simulator/fault.ts";
import { calls, fault, join, reasoning, text } from "../src/simulator/server.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import type { EndedTurn } from "./setup/turnStream.ts";

const echo = defineTool({
  name: "echo",
  description: "Answers at once.",
  parameters: { type: "object", properties: {} },
  handler: () => "echo",
});

const unknown = () => fault.status(404, { body: apiError("Item with id 'rs_1' not found.") });
const garbled = () =>
  fault.status(400, {
    body: apiError("Not verified.", "invalid_request_error", "invalid_encrypted_content"),
  });

const withReasoning = ["message", "reasoning", "message", "message"];
const without = ["message", "message", "message"];

describeWith(["postgres", "temporal"], "a turn after reasoning that the provider lost", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    const agent = defineAgent({ name: "default", model: "gpt-test", tools: ["echo"] });
    deployment = await deploy({ tools: [echo], agents: [agent] });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  /** A turn in a conversation whose first turn has thought, and which the script meets. */
  async function goOn(...script: ScriptStep[]): Promise<EndedTurn> {
    const { simulator, turnkeeper } = deployment;
    simulator.script(join(reasoning("Hm."), text("First.")));
    const first = await ended(await turnkeeper.turns.start({ input: "Think" }));
    deployment.endScript();
    simulator.script(...script);
    const conversation = first.turn.conversationId;
    return ended(await turnkeeper.turns.start({ input: "Go", conversation }));
  }

  /** The types of the items of each request. */
  const typesSent = () =>
    deployment.simulator.requests.map(({ body }) =>
      (body.input as { type: string }[]).map(({ type }) => type),
    );

  async function failureClasses({ turn }: EndedTurn): Promise<(string | null)[]> {
    const ledger = await readModelCalls(deployment.database, "default", turn.id);
    return ledger.map((call) => call.failureClass);
  }

  test.each([
    ["does not have it", unknown],
    ["cannot decrypt it", garbled],
  ])("is called again without it where the provider %s", async (_, refuse) => {
    const turn = await goOn(refuse(), text("Second."));
    expect(turn).toMatchObject({ status: "completed", text: "Second." });
    expect(await failureClasses(turn)).toEqual(["item_not_found", null]);
    expect(typesSent()).toEqual([withReasoning, without]);
  });

  test("goes without it from then on, whatever else fails and in its later steps", async () => {
    const asks = calls([{ name: "echo", arguments: {} }]);
    const turn = await goOn(unknown(), fault.status(503), asks, text("Second."));
    expect(turn).toMatchObject({ status: "completed", text: "Second." });
    expect(await failureClasses(turn)).toEqual(["item_not_found", "overloaded", null, null]);
    const later = [...without, "function_call", "function_call_output"];
    expect(typesSent()).toEqual([withReasoning, without, without, later]);
  });

  test("fails when that does not help", async () => {
    const turn = await goOn(unknown(), garbled());
    expect(turn).toMatchObject({
      status: "failed",
      turn: { failure: { class: "item_not_found", code: "invalid_encrypted_content" } },
    });
    expect(await failureClasses(turn)).toEqual(["item_not_found", "item_not_found"]);
    expect(typesSent()).toEqual([withReasoning, without]);
  });
});
