import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { WorkerVersion } from "../src/config.ts";
import { gate, text } from "../src/simulator/server.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import { workflowEnd } from "./setup/workflowEnd.ts";

const deploymentName = `turnkeeper-${randomUUID()}`;
const version = (buildId: string): WorkerVersion => ({ deploymentName, buildId });
const rolloutTimeoutMs = 60_000;

describeWith(["postgres", "temporal"], "workers with versions", () => {
  let old: Deployment;

  beforeAll(async () => {
    old = await deploy({ version: version("1") });
  });

  afterAll(() => old.close());

  /** As an operator does once the version's workers have started. */
  async function makeCurrent(buildId: string): Promise<void> {
    const request = { namespace: "default", deploymentName, buildId, identity: "test" };
    await expect
      .poll(
        () =>
          old.temporal.workflowService.setWorkerDeploymentCurrentVersion(request).then(
            () => "set",
            (error: unknown) => String(error),
          ),
        { timeout: rolloutTimeoutMs },
      )
      .toBe("set");
    // The task queue, which gives tasks to versions, hears of it a moment later.
    await expect.poll(() => currentOnTaskQueue(), { timeout: rolloutTimeoutMs }).toBe(buildId);
  }

  async function currentOnTaskQueue(): Promise<unknown> {
    const workflowTasks = 1;
    const { versioningInfo } = await old.temporal.workflowService.describeTaskQueue({
      namespace: "default",
      taskQueue: { name: old.taskQueue },
      taskQueueType: workflowTasks,
    });
    return versioningInfo?.currentDeploymentVersion?.buildId;
  }

  async function versionOf(turnId: string): Promise<unknown> {
    const { raw } = await old.temporal.workflow.getHandle(turnId).describe();
    return raw.workflowExecutionInfo?.versioningInfo?.deploymentVersion?.buildId;
  }

  test(
    "take turns as Temporal is told, and a running turn goes over to the current version",
    async () => {
      const { simulator, turnkeeper, databaseUrl, taskQueue } = old;
      await makeCurrent("1");
      const pause = gate(1);
      simulator.script(text("one two", { pauseAfter: pause }));
      const turn = await turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      const next = await deploy({
        version: version("2"),
        databaseUrl,
        taskQueue,
        openaiBaseUrl: simulator.baseUrl,
      });
      await makeCurrent("2");
      pause.open();
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "one two" });
      await workflowEnd(old.temporal, turn.id);
      expect(await versionOf(turn.id)).toBe("2");
      await next.close();
    },
    rolloutTimeoutMs,
  );
});
