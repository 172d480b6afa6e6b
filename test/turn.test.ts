import { afterAll, beforeAll, expect, test } from "vitest";
import { text } from "../src/simulator/server.ts";
import { registerAgents } from "../src/store/agents.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";

describeWith(["postgres", "temporal"], "a turn", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy();
  });

  afterAll(() => deployment.close());

  test("streams its answer by number, and its result is the same text", async () => {
    const { simulator, turnkeeper } = deployment;
    simulator.script(text("Hello there", { deltas: ["Hel", "lo ", "there"] }));
    const turn = await turnkeeper.turns.start({ input: "Hi" });
    const events = await Array.fromAsync(turn.events());
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
    expect(events[0]?.type).toBe("response.created");
    expect(events.at(-1)?.type).toBe("response.completed");
    const result = await turn.result();
    expect(result).toMatchObject({ status: "completed", text: "Hello there" });
    simulator.assertConsumed();
  });

  test("is refused where its agent's name is wrong, default agent or not", async () => {
    const start = deployment.turnkeeper.turns.start({ agent: "suport", input: "Hi" });
    const refusal = { code: "unknown_agent", param: "agent" };
    await expect(start).rejects.toMatchObject(refusal);
  });

  test("runs its agent on the model that is named beside it", async () => {
    const { simulator, turnkeeper, database } = deployment;
    await registerAgents(database, [defineAgent({ name: "support", model: "gpt-test" })]);
    simulator.script(text("One."), text("Two."));
    const turns: unknown[] = [];
    for (const model of [null, "gpt-other"]) {
      const turn = await turnkeeper.turns.start({ agent: "support", model, input: "Hi" });
      await turn.result();
      const { agent, model: used } = await turnkeeper.turns.read(turn.id);
      turns.push([agent, used]);
    }
    expect(turns).toEqual([
      ["support", "gpt-test"],
      ["support", "gpt-other"],
    ]);
  });

  test("is another one where the same key comes with another agent", async () => {
    const { simulator, turnkeeper, database } = deployment;
    const named = (name: string) => defineAgent({ name, model: "gpt-test" });
    await registerAgents(database, [named("sales"), named("support")]);
    simulator.script(text("One."));
    const request = { model: "gpt-other", input: "Hi" };
    const idempotencyKey = crypto.randomUUID();
    const start = (agent: string) =>
      turnkeeper.turns.start({ ...request, agent }, { idempotencyKey });
    const turn = await start("sales");
    await expect(start("support")).rejects.toMatchObject({ code: "idempotency_key_reused" });
    expect((await start("sales")).id).toBe(turn.id);
    await turn.result();
  });
});
