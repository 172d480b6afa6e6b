import OpenAI from "openai";
import { pino } from "pino";
import { afterEach, beforeEach, expect, inject, test } from "vitest";
import { anyFreePort } from "../../src/dev/ports.ts";
import { startTemporalServer } from "../../src/dev/temporalServer.ts";
import { openModelEndpoint } from "../../src/responses/call.ts";
import { gate, text } from "../../src/simulator/server.ts";
import { connectNatively } from "../../src/temporal.ts";
import { defineAgent } from "../../src/turn/agent.ts";
import { createWorker } from "../../src/worker.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { describeWith, sharedTemporal } from "../setup/servers.ts";
import { ended } from "../setup/turnStream.ts";

const answer = { deltas: ["One", " two", " three"] };
const hangGuardMs = 120_000;

describeWith(["postgres", "temporal"], "a worker that gets SIGTERM", () => {
  let parts: Crashable;

  beforeEach(async () => {
    parts = await startCrashable();
  });

  afterEach(() => parts.close());

  test(
    "lets a running call end within its grace, and exits with 0",
    async () => {
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
    },
    hangGuardMs,
  );

  test(
    "while it starts does not run at all",
    async () => {
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
        agents: [defineAgent({ name: "default", model: "gpt-test" })],
        tools: [],
        workflowBundle: inject("workflowBundle"),
        log,
        maxConcurrentSteps: 1,
        shutdownGraceMs: 1_000,
      });
      const turn = await parts.turnkeeper.turns.start({ input: "Count" });
      worker.shutdown();
      await worker.run();
      expect((await parts.turnkeeper.turns.read(turn.id)).status).toBe("admitted");
      expect(parts.simulator.requests).toEqual([]);
      await endpoint.close();
      await connection.close();
    },
    hangGuardMs,
  );

  test(
    "hands a call that outlasts its grace over to another worker, and exits with 0",
    async () => {
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
      expect(await ended(turn)).toMatchObject({ status: "completed", text: "One two three" });
    },
    hangGuardMs,
  );

  test(
    "takes no more work while its last call ends",
    async () => {
      const pause = gate(2);
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
      const worker = await parts.startWorker();
      const turn = await parts.turnkeeper.turns.start({ input: "Count" });
      await pause.reached;
      const stopped = worker.stop();
      await worker.said("worker stopping");
      const next = await parts.turnkeeper.turns.start({ input: "Count" });
      pause.open();
      expect(await stopped).toBe(0);
      expect(await turn.result()).toMatchObject({ status: "completed" });
      expect(parts.simulator.bill).toHaveLength(1);
      await parts.startWorker();
      expect(await next.result()).toMatchObject({ status: "completed" });
    },
    hangGuardMs,
  );

  test(
    "while Temporal is away exits with 0 all the same",
    async () => {
      const temporal = await startTemporalServer({ binary: sharedTemporal().binary });
      const worker = await parts.startWorker({ temporalAddress: temporal.address });
      await temporal.kill();
      expect(await worker.stop()).toBe(0);
    },
    hangGuardMs,
  );
});

describeWith(["postgres", "temporal"], "a process that serves HTTP and gets SIGTERM", () => {
  let parts: Crashable;

  beforeEach(async () => {
    parts = await startCrashable();
  });

  afterEach(() => parts.close());

  async function startServing(role: "serve" | "gateway", graceMs = 20_000) {
    const port = await anyFreePort();
    const environment = {
      TURNKEEPER_PORT: `${port}`,
      TURNKEEPER_SHUTDOWN_GRACE_MS: `${graceMs}`,
    };
    const server = await parts.startWorker({ role, environment });
    const baseURL = `http://127.0.0.1:${port}/v1`;
    return { server, client: new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 }) };
  }

  type Events = OpenAI.Responses.ResponseStreamEvent[];

  /** A stream that pauses after its second word, and what has come of it when it breaks off. */
  async function streamPaused(client: OpenAI) {
    const pause = gate(2);
    parts.simulator.script(text("", { ...answer, pauseAfter: pause }));
    const stream = await client.responses.create({ input: "Count", stream: true });
    const seen: Events = [];
    const brokeOff = (async () => {
      for await (const event of stream) seen.push(event);
    })().then(
      () => false,
      () => true,
    );
    await pause.reached;
    await expect.poll(() => seen.at(-1)?.type).toBe("response.output_text.delta");
    return { seen, brokeOff, open: pause.open };
  }

  /** Resumes where a stream broke off; the two together are the whole stream [6]. */
  async function expectResumes(client: OpenAI, seen: Events): Promise<void> {
    const { response } = seen[0] as OpenAI.Responses.ResponseCreatedEvent;
    const rest = await client.responses.retrieve(response.id, {
      stream: true,
      starting_after: seen.at(-1)?.sequence_number ?? -1,
    });
    const all = [...seen, ...(await Array.fromAsync(rest))];
    expect(all.map((event) => event.sequence_number)).toEqual(all.map((_, at) => at));
    expect(all.at(-1)).toMatchObject({ type: "response.completed" });
  }

  test(
    "cuts its streams off, which resume at another gateway, and exits with 0",
    async () => {
      await parts.startWorker();
      const leaving = await startServing("gateway");
      const { seen, brokeOff, open } = await streamPaused(leaving.client);
      expect(await leaving.server.stop()).toBe(0);
      expect(await brokeOff).toBe(true);
      const { client } = await startServing("gateway");
      open();
      await expectResumes(client, seen);
    },
    hangGuardMs,
  );

  test(
    "or a worker behind it that does takes no more of its turns",
    async () => {
      const worker = await parts.startWorker();
      const { client } = await startServing("gateway");
      const { brokeOff, open } = await streamPaused(client);
      const stopped = worker.stop();
      await worker.said("worker stopping");
      const { id } = await client.responses.create({ input: "Count", background: true });
      open();
      expect(await brokeOff).toBe(false);
      expect(await stopped).toBe(0);
      expect(parts.simulator.bill).toHaveLength(1);
      parts.simulator.script(text("", answer));
      await parts.startWorker();
      const turn = await parts.turnkeeper.turns.get(id);
      expect(await turn.result()).toMatchObject({ status: "completed" });
    },
    hangGuardMs,
  );

  test(
    "beside a call that runs in it lets the call end, and exits with 0",
    async () => {
      const leaving = await startServing("serve");
      const { seen, brokeOff, open } = await streamPaused(leaving.client);
      const stopped = leaving.server.stop();
      expect(await brokeOff).toBe(true);
      open();
      expect(await stopped).toBe(0);
      const { client } = await startServing("gateway");
      await expectResumes(client, seen);
      expect(parts.simulator.bill).toHaveLength(1);
    },
    hangGuardMs,
  );

  test(
    "hands a call that outlasts its grace over, and exits with 0",
    async () => {
      const graceMs = 300;
      const leaving = await startServing("serve", graceMs);
      const { seen, brokeOff } = await streamPaused(leaving.client);
      parts.simulator.script(text("", answer));
      expect(await leaving.server.stop()).toBe(0);
      expect(await brokeOff).toBe(true);
      const { client } = await startServing("serve");
      await expectResumes(client, seen);
    },
    hangGuardMs,
  );
});
