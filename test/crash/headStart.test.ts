import OpenAI from "openai";
import { afterEach, beforeEach, expect, test } from "vitest";
import { anyFreePort } from "../../src/dev/ports.ts";
import { gate, text } from "../../src/simulator/server.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { describeWith } from "../setup/servers.ts";
import { ended } from "../setup/turnStream.ts";
import type { WorkerProcess } from "../setup/workerProcess.ts";

const answer = { deltas: ["One", " two", " three"] };
const hangGuardMs = 60_000;

describeWith(["postgres", "temporal"], "a head start beside other workers", () => {
  let parts: Crashable;
  let server: WorkerProcess;
  let client: OpenAI;

  beforeEach(async () => {
    parts = await startCrashable();
    const port = await anyFreePort();
    const environment = { TURNKEEPER_PORT: `${port}` };
    server = await parts.startWorker({ role: "serve", environment });
    client = new OpenAI({ baseURL: `http://127.0.0.1:${port}/v1`, apiKey: "none" });
  });

  afterEach(() => parts.close());

  async function expectAnswer(turnId: string): Promise<void> {
    const end = await ended(await parts.turnkeeper.turns.get(turnId));
    expect(end).toMatchObject({ status: "completed", text: "One two three" });
    await parts.temporal.workflow.getHandle(turnId).result();
  }

  test(
    "is left alone while its owner lives, wherever the activity lands",
    async () => {
      await parts.startWorker();
      const pauses = Array.from({ length: 6 }, () => gate(1));
      parts.simulator.script(...pauses.map((pauseAfter) => text("", { ...answer, pauseAfter })));
      const turns = await Promise.all(
        pauses.map(() => client.responses.create({ input: "Count", background: true })),
      );
      await Promise.all(pauses.map((pause) => pause.reached));
      const started = 2;
      // Until Temporal has the first attempt of each activity running, in either process.
      for (const { id } of turns) {
        await expect
          .poll(async () => {
            const { raw } = await parts.temporal.workflow.getHandle(id).describe();
            return raw.pendingActivities?.[0];
          })
          .toMatchObject({ state: started, attempt: 1 });
      }
      for (const pause of pauses) pause.open();
      for (const { id } of turns) await expectAnswer(id);
      expect(parts.simulator.bill).toHaveLength(turns.length);
    },
    hangGuardMs,
  );

  test(
    "is taken over when its owner has died",
    async () => {
      const pause = gate(2);
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
      const { id } = await client.responses.create({ input: "Count", background: true });
      await pause.reached;
      await server.kill();
      await parts.startWorker();
      await expectAnswer(id);
      expect(parts.simulator.bill).toHaveLength(2);
    },
    hangGuardMs,
  );
});
