import { afterAll, beforeAll, expect, test } from "vitest";
import { gate, text, when } from "../src/simulator/server.ts";
import type { SimulatedRequest } from "../src/simulator/server.ts";
import type { TurnHandle } from "../src/turnHandle.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { admit } from "./setup/storeTurns.ts";
import { ended } from "./setup/turnStream.ts";

/** What the default settings promise, plus a little. */
const guardMs = 30_000;

describeWith(["postgres", "temporal"], "with the janitor's default settings", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy();
  });

  afterAll(() => deployment.close());

  const says = (mark: string) => (request: SimulatedRequest) =>
    JSON.stringify(request.body).includes(mark);

  async function startAndTerminate(): Promise<TurnHandle> {
    const { simulator, turnkeeper, temporal } = deployment;
    const pause = gate(1);
    simulator.script(when(says("terminated"), text("Never said whole.", { pauseAfter: pause })));
    const turn = await turnkeeper.turns.start({ input: "terminated" });
    await pause.reached;
    await temporal.workflow.getHandle(turn.id).terminate("by hand");
    return turn;
  }

  /** As a process leaves it that dies before Temporal has heard of the turn. */
  async function admitOnly(): Promise<TurnHandle> {
    const { simulator, turnkeeper, database } = deployment;
    simulator.script(when(says("not started"), text("Done.")));
    const turn = await admit(database, { input: "not started" });
    return turnkeeper.turns.get(turn.id);
  }

  test(
    "a terminated turn ends and one that was never started runs within half a minute",
    async () => {
      const [terminated, notStarted] = await Promise.all([startAndTerminate(), admitOnly()]);
      const [gone, run] = await Promise.all([ended(terminated), ended(notStarted)]);
      expect(gone).toMatchObject({
        status: "failed",
        turn: { failure: { class: "workflow_gone" } },
      });
      expect(run).toMatchObject({ status: "completed", text: "Done." });
    },
    guardMs,
  );
});
