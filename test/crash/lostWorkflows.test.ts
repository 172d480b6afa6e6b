import { afterEach, beforeEach, expect, test } from "vitest";
import { anyFreePort } from "../../src/dev/ports.ts";
import { startTemporalServer } from "../../src/dev/temporalServer.ts";
import type { TemporalServer } from "../../src/dev/temporalServer.ts";
import { gate, text } from "../../src/simulator/server.ts";
import { createConversation } from "../../src/store/conversations.ts";
import { newId } from "../../src/turn/ids.ts";
import type { TurnHandle } from "../../src/turnHandle.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { describeWith, sharedTemporal } from "../setup/servers.ts";
import { ended } from "../setup/turnStream.ts";

const answer = { deltas: ["One", " two", " three"] };
const hangGuardMs = 90_000;

describeWith(["postgres", "temporal"], "a turn whose workflow is lost", () => {
  let temporal: TemporalServer;
  let parts: Crashable;

  /** Without a file, so that a restart has forgotten everything. */
  const startTemporal = (port: number) =>
    startTemporalServer({ binary: sharedTemporal().binary, port });

  beforeEach(async () => {
    temporal = await startTemporal(await anyFreePort());
    parts = await startCrashable({ temporalAddress: temporal.address });
  });

  afterEach(async () => {
    await parts.close();
    await temporal.kill();
  });

  /** By a worker that is gone when the turn starts. */
  async function registerAgents(): Promise<void> {
    const worker = await parts.startWorker();
    await worker.kill();
  }

  async function loseTemporal(): Promise<void> {
    await temporal.kill();
    temporal = await startTemporal(Number(temporal.address.split(":")[1]));
  }

  /** A turn that has begun to answer and pauses, and one that waits behind it. */
  async function startPausedAndQueued(start: (conversation: string) => Promise<string>) {
    const { simulator, turnkeeper, database } = parts;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const pause = gate(1);
    simulator.script(text("", { ...answer, pauseAfter: pause }));
    const turn = await turnkeeper.turns.get(await start(conversation)).catch(() => null);
    await pause.reached;
    const input = { input: "Next", conversation };
    const queued = await turnkeeper.turns.start(input, { whenBusy: "queue" });
    return { turn, queued, open: pause.open };
  }

  const startByClient = async (conversation: string): Promise<string> =>
    (await parts.turnkeeper.turns.start({ input: "Count", conversation })).id;

  test(
    "because it timed out ends as failed, subscribers are told, and the next one is granted",
    async () => {
      await parts.startWorker();
      const id = newId("turn");
      const { queued } = await startPausedAndQueued(async (conversation) => {
        await parts.temporal.workflow.start("conversationTurn", {
          taskQueue: parts.workerOptions.taskQueue,
          workflowId: id,
          workflowRunTimeout: "3s",
          args: [{ request: { input: "Count", conversation } }],
        });
        return id;
      });
      parts.simulator.script(text("Next answer."));
      const turn = await parts.turnkeeper.turns.get(id);
      expect(await ended(turn)).toMatchObject({
        status: "failed",
        turn: { failure: { class: "workflow_gone" } },
      });
      await parts.simulator.waitFor("aborted");
      expect(await ended(queued)).toMatchObject({ status: "completed", text: "Next answer." });
    },
    hangGuardMs,
  );

  test(
    "with all of Temporal's data is run by the new one, and so is the next one",
    async () => {
      await parts.startWorker();
      const { turn, queued } = await startPausedAndQueued(startByClient);
      parts.simulator.script(text("", answer), text("Next answer."));
      await loseTemporal();
      expect(await ended(turn as TurnHandle)).toMatchObject({
        status: "completed",
        text: "One two three",
      });
      expect(await ended(queued)).toMatchObject({ status: "completed", text: "Next answer." });
      for (const { id } of [turn as TurnHandle, queued]) {
        expect(await parts.temporal.workflow.getHandle(id).result()).toEqual({
          status: "completed",
        });
      }
    },
    hangGuardMs,
  );

  test(
    "before a worker has heard of it is run by the new one",
    async () => {
      await registerAgents();
      const turn = await parts.turnkeeper.turns.start({ input: "Count" });
      await loseTemporal();
      parts.simulator.script(text("", answer));
      await parts.startWorker();
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "One two three" });
    },
    hangGuardMs,
  );

  test(
    "while its cancel was on its way is cancelled all the same",
    async () => {
      const { turnkeeper, database } = parts;
      await registerAgents();
      const turn = await turnkeeper.turns.start({ input: "Count" });
      // As a process leaves it that dies between the flag and Temporal.
      await database.query("UPDATE turns SET cancel_requested_at = now() WHERE id = $1", [turn.id]);
      await loseTemporal();
      await parts.startWorker();
      expect(await ended(turn)).toMatchObject({ status: "cancelled", text: "" });
      expect(parts.simulator.bill).toHaveLength(0);
    },
    hangGuardMs,
  );
});
