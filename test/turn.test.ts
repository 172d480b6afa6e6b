import { afterAll, beforeAll, expect, test } from "vitest";
import { text } from "../src/simulator/server.ts";
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
});
