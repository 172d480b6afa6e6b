import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { Client, Connection } from "@temporalio/client";
import { afterEach, beforeEach, expect, inject, test } from "vitest";
import { readConfig } from "../src/config.ts";
import { devTaskQueue } from "../src/dev/taskQueue.ts";
import { fault, gate, startSimulator, text } from "../src/simulator/server.ts";
import type { Simulator } from "../src/simulator/server.ts";
import { createApiKey } from "../src/store/apiKeys.ts";
import { openPostgres } from "../src/store/postgres.ts";
import { createTestDatabase } from "./setup/database.ts";
import { hasTerminal, killDevProcesses, runDev, startDev } from "./setup/devProcess.ts";
import type { DevProcess } from "./setup/devProcess.ts";
import { describeWith } from "./setup/servers.ts";

const hangGuardMs = 120_000;

describeWith(["postgres", "temporal"], "turnkeeper dev", () => {
  let folder: string;
  let simulator: Simulator;

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "turnkeeper-dev-"));
    simulator = await startSimulator({ mode: "scripted" });
  });

  afterEach(async () => {
    await killDevProcesses();
    await simulator.close();
    await rm(folder, { recursive: true, force: true });
  });

  const ownModel = () => ({
    OPENAI_BASE_URL: simulator.baseUrl,
    OPENAI_API_KEY: "sk-simulated",
    TURNKEEPER_WORKFLOW_BUNDLE: inject("workflowBundle"),
  });

  test(
    "--once answers on the simulator, says what it cost and where to see it, and exits with 0",
    async () => {
      const { code, output } = await runDev(folder, ["--once", "Say hello"]);
      expect(output).toContain("hello");
      expect(output).toMatch(/turn resp_\w+: 1 model call, \d+ tokens, cost nothing \(simulated/);
      expect(output).toMatch(/http:\/\/127\.0\.0\.1:\d+\/namespaces\/default\/workflows\/resp_/);
      expect(code).toBe(0);
    },
    hangGuardMs,
  );

  test(
    "--once exits with 1 and the reason when the turn fails",
    async () => {
      simulator.script(fault.quota());
      const { code, output } = await runDev(folder, ["--once", "Hi"], ownModel());
      expect(output).toMatch(/turnkeeper: The turn resp_\w+ failed: .*quota/);
      expect(output).not.toContain("    at ");
      expect(code).toBe(1);
    },
    hangGuardMs,
  );

  test(
    "needs an API key of a database that has one, and says so",
    async () => {
      const { url } = await createTestDatabase();
      const database = openPostgres({ url });
      const { secret } = await createApiKey(database, "shop", "test");
      await database.close();
      const environment = { ...ownModel(), DATABASE_URL: url };
      const refused = await runDev(folder, ["--once", "Hi"], environment);
      expect(refused.output).toMatch(/TURNKEEPER_API_KEY: .*turnkeeper key create/);
      expect(refused.output).not.toContain("    at ");
      expect(refused.code).toBe(1);
      simulator.script(text("Hello"));
      const withKey = { ...environment, TURNKEEPER_API_KEY: secret };
      const { code, output } = await runDev(folder, ["--once", "Hi"], withKey);
      expect(output).toMatch(/turn resp_\w+: 1 model call, \d+ tokens/);
      expect(code).toBe(0);
    },
    hangGuardMs,
  );

  test(
    "TURNKEEPER_DURABILITY holds for its own agent too",
    async () => {
      simulator.script(text("Hello"));
      const environment = { ...ownModel(), TURNKEEPER_DURABILITY: "background" };
      expect(await runDev(folder, ["--once", "Hi"], environment)).toMatchObject({ code: 0 });
      expect(simulator.requests[0]?.body).toMatchObject({ background: true, store: true });
    },
    hangGuardMs,
  );

  test(
    "a namespace and an API key for another Temporal server do not break its own",
    async () => {
      const environment = { TEMPORAL_NAMESPACE: "shop.a1b2c", TEMPORAL_API_KEY: "key" };
      const { code, output } = await runDev(folder, ["--once", "Say hello"], environment);
      expect(output).toMatch(/\/namespaces\/default\/workflows\/resp_/);
      expect(code).toBe(0);
    },
    hangGuardMs,
  );

  (hasTerminal ? test : test.skip)(
    `on a terminal it offers a prompt, and the next start goes on with the conversation${hasTerminal ? "" : " (skipped: no script of util-linux)"}`,
    async () => {
      simulator.script(text("It is noon."), text("Welcome, Ada."), text("You are Ada."));
      const first = await startDev(folder, ownModel(), true);
      await first.said("Type a message");
      first.type("I am Ada\r");
      await first.said("Welcome, Ada.");
      first.type("\u0003");
      expect(await first.exited).toBe(0);
      expect(first.output()).not.toContain("The conversation goes on");
      const second = await startDev(folder, ownModel(), true);
      await second.said("Type a message");
      expect(second.output()).toContain("The conversation goes on where it was left.");
      second.type("Who am I?\r");
      await second.said("You are Ada.");
      const asked = simulator.requests.map(({ body }) => JSON.stringify(body.input));
      expect(asked).toHaveLength(3);
      expect(asked[2]).toMatch(/What time is it.*It is noon.*I am Ada.*Welcome, Ada.*Who am I/);
      second.type("\u0004");
      expect(await second.exited).toBe(0);
    },
    hangGuardMs,
  );

  test(
    "a busy port that was set by hand is named",
    async () => {
      const server = createServer().listen(0, "127.0.0.1");
      await once(server, "listening");
      const { port } = server.address() as { port: number };
      const { code, output } = await runDev(folder, ["--port", `${port}`]);
      expect(output).toContain(`${port}`);
      expect(output).toMatch(/--port/);
      expect(code).toBe(1);
      server.close();
    },
    hangGuardMs,
  );

  test(
    "after kill -9 the next start goes on with the turn that was under way, on the same queue",
    async () => {
      const pause = gate(2);
      const answer = { deltas: ["One", " two", " three"] };
      simulator.script(text("Hello"), text("", { ...answer, pauseAfter: pause }), text("", answer));
      const first = await startDev(folder, ownModel());
      const before = new OpenAI({ baseURL: first.apiUrl, apiKey: "none" });
      const conversation = await before.conversations.create();
      const started = await before.responses.create({
        input: "Count",
        conversation: conversation.id,
        background: true,
      });
      await pause.reached;
      expect(first.taskQueue).toMatch(/^turnkeeper-[0-9a-f]{8}$/);
      expect(await queueOf(first, started.id)).toBe(first.taskQueue);
      first.signal("SIGKILL");
      await first.exited;
      const second = await startDev(folder, ownModel());
      expect(second.taskQueue).toBe(first.taskQueue);
      const after = new OpenAI({ baseURL: second.apiUrl, apiKey: "none" });
      const events = await Array.fromAsync(
        await after.responses.retrieve(started.id, { stream: true }),
      );
      expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
      const last = events.at(-1);
      expect(last?.type === "response.completed" && last.response.output).toMatchObject([
        { content: [{ text: "One two three" }] },
      ]);
      const items = await after.conversations.items.list(conversation.id);
      expect(items.data).toHaveLength(2);
      // As npm and the terminal do at one Ctrl-C; two of one kind at once may arrive as one.
      second.signal("SIGINT");
      second.signal("SIGTERM");
      expect(await second.exited).toBe(0);
      await expect(fetch(second.temporalUiUrl)).rejects.toThrow("fetch failed");
    },
    hangGuardMs,
  );
});

async function queueOf(dev: DevProcess, turnId: string): Promise<string> {
  const connection = await Connection.connect({ address: dev.temporalAddress });
  const description = await new Client({ connection }).workflow.getHandle(turnId).describe();
  await connection.close();
  return description.taskQueue;
}

test("an embedded database has a task queue of its own, unless one was set", async () => {
  const folder = await mkdtemp(join(tmpdir(), "turnkeeper-queue-"));
  const other = await mkdtemp(join(tmpdir(), "turnkeeper-queue-"));
  const queueFor = (options: { folder: string }, variables: Record<string, string> = {}) =>
    devTaskQueue(readConfig(options, variables));
  const own = await queueFor({ folder });
  expect(own).not.toBe("turnkeeper");
  expect(await queueFor({ folder })).toBe(own);
  expect(await queueFor({ folder: other })).not.toBe(own);
  expect(await queueFor({ folder }, { TURNKEEPER_TASK_QUEUE: "turnkeeper" })).toBe("turnkeeper");
  const shared = { DATABASE_URL: "postgres://localhost/turnkeeper" };
  expect(await queueFor({ folder }, shared)).toBe("turnkeeper");
  await rm(folder, { recursive: true });
  await rm(other, { recursive: true });
});
