import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openModelEndpoint } from "../../src/responses/call.ts";
import { gate, text } from "../../src/simulator/server.ts";
import { connectNatively } from "../../src/temporal.ts";
import { createWorker } from "../../src/worker.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { describeWith } from "../setup/servers.ts";

const answer = { deltas: ["One", " two", " three"] };

describeWith(["postgres", "temporal"], "a worker that gets SIGTERM", () => {
  let parts: Crashable;

  beforeEach(async () => {
    parts = await startCrashable();
  });

  afterEach(() => parts.close());

  test("lets a running call end within its grace, and exits with 0", async () => {
    const pause = gate(2);
    parts.simulator.script(text("", { ...answer, pauseAfter: pause }));
    const worker = await parts.startWorker();
    const turn = await parts.turnkeeper.turns.start({ input: "Count" });
    await pause.reached;
    const stopped = worker.stop();
    pause.open();
    expect(await stopped).toBe(0);
    expect(await turn.result()).toMatchObject({ status: "completed", text: "One two three" });
    expect(parts.simulator.bill).toHaveLength(1);
  });

  test("while it starts does not run at all", async () => {
    const log = pino({ level: "silent" });
    const { temporalAddress: address, taskQueue, openaiBaseUrl: baseUrl } = parts.workerOptions;
    const { connection, client } = await connectNatively({ address }, log);
    const timeouts = { connectTimeoutMs: 5_000, headersTimeoutMs: 5_000 };
    const endpoint = openModelEndpoint({ baseUrl, apiKey: "sk-simulated", ...timeouts });
    const worker = await createWorker({
      connection,
      client,
      taskQueue,
      database: parts.database,
      endpoint,
      agents: [],
      tools: [],
      log,
      maxConcurrentSteps: 1,
      shutdownGraceMs: 1_000,
    });
    worker.shutdown();
    await worker.run();
    await endpoint.close();
    await connection.close();
  });

  test("hands a call that outlasts its grace over to another worker, and exits with 0", async () => {
    const pause = gate(2);
    parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
    const environment = { TURNKEEPER_SHUTDOWN_GRACE_MS: "300" };
    const worker = await parts.startWorker({ environment });
    const turn = await parts.turnkeeper.turns.start({ input: "Count" });
    await pause.reached;
    const stopped = worker.stop();
    await parts.simulator.waitFor("aborted");
    expect(await stopped).toBe(0);
    await parts.startWorker();
    expect(await turn.result()).toMatchObject({ status: "completed", text: "One two three" });
    const events = await Array.fromAsync(turn.events());
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
  });
});
