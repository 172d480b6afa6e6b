import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { TurnHandle } from "../../src/turnHandle.ts";
import { anyFreePort } from "../../src/dev/ports.ts";
import { startTemporalServer } from "../../src/dev/temporalServer.ts";
import type { TemporalServer } from "../../src/dev/temporalServer.ts";
import { gate, text } from "../../src/simulator/server.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { migrateByUrl } from "../setup/migrateByUrl.ts";
import { startPostgres } from "../setup/postgresServer.ts";
import type { PostgresServer } from "../setup/postgresServer.ts";
import { describeWith, sharedTemporal } from "../setup/servers.ts";
import { ended } from "../setup/turnStream.ts";
import { startWorkerProcess } from "../setup/workerProcess.ts";

const answer = { deltas: ["One", " two", " three", " four"] };
const whole = "One two three four";
const outageTimeoutMs = 120_000;

describeWith(["postgres", "temporal"], "an outage", () => {
  let postgres: PostgresServer;
  let temporal: TemporalServer;
  let temporalPort: number;
  let folder: string;
  let parts: Crashable;

  const startTemporal = () =>
    startTemporalServer({
      binary: sharedTemporal().binary,
      dbFilename: join(folder, "temporal.db"),
      port: temporalPort,
    });

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "turnkeeper-outage-"));
    temporalPort = await anyFreePort();
    postgres = await startPostgres();
    temporal = await startTemporal();
    await migrateByUrl(postgres.url());
    parts = await startCrashable({
      databaseUrl: postgres.url(),
      temporalAddress: temporal.address,
    });
  });

  afterEach(async () => {
    await parts.close();
    await temporal.stop();
    await postgres.remove();
    await rm(folder, { recursive: true, force: true });
  });

  async function expectExact(turn: TurnHandle): Promise<void> {
    expect(await ended(turn)).toMatchObject({ status: "completed", text: whole });
  }

  test(
    "of the database in mid-stream loses nothing and costs no second call",
    async () => {
      const pause = gate(2);
      await parts.startWorker();
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }));
      const turn = await parts.turnkeeper.turns.start({ input: "Count" });
      await pause.reached;
      await postgres.stop();
      pause.open();
      await parts.simulator.waitFor("finished");
      await expect(parts.turnkeeper.turns.start({ input: "Hi" })).rejects.toMatchObject({
        code: "store_unavailable",
      });
      await postgres.start();
      await expectExact(turn);
      expect(parts.simulator.bill).toHaveLength(1);
    },
    outageTimeoutMs,
  );

  test(
    "of Temporal in mid-stream loses nothing, and turns that start meanwhile are run after it",
    async () => {
      const pause = gate(2);
      await parts.startWorker();
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
      const turn = await parts.turnkeeper.turns.start({ input: "Count" });
      await pause.reached;
      await temporal.stop();
      pause.open();
      await expectExact(turn);
      const meanwhile = await parts.turnkeeper.turns.start({ input: "Count again" });
      temporal = await startTemporal();
      await expectExact(meanwhile);
      await parts.temporal.workflow.getHandle(turn.id).result();
      await parts.temporal.workflow.getHandle(meanwhile.id).result();
      expect(parts.simulator.bill).toHaveLength(2);
    },
    outageTimeoutMs,
  );

  test(
    "of the database or of Temporal at the start of a worker is waited for, and said",
    async () => {
      await postgres.stop();
      await temporal.stop();
      const worker = await startWorkerProcess(parts.workerOptions, "waiting for the database");
      await postgres.start();
      await worker.said("waiting for Temporal");
      temporal = await startTemporal();
      await worker.said("worker started");
      parts.simulator.script(text("", answer));
      await expectExact(await parts.turnkeeper.turns.start({ input: "Count" }));
      await worker.kill();
    },
    outageTimeoutMs,
  );
});
