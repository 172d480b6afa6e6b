import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { stepToFreePort } from "../src/dev/ports.ts";
import { fault, gate, text } from "../src/simulator/server.ts";
import { createApiKey } from "../src/store/apiKeys.ts";
import { ask } from "./setup/gateway.ts";
import { startCrashable } from "./setup/crashable.ts";
import type { Crashable } from "./setup/crashable.ts";
import { createTestDatabase } from "./setup/database.ts";
import { runCommand } from "./setup/runCommand.ts";
import { describeWith } from "./setup/servers.ts";
import { startWorkerProcess } from "./setup/workerProcess.ts";

/** Away from the ports of other tests. */
const firstPort = 18_423;

describe("a command that asks a gateway", () => {
  test.each([["turn"], ["turn list"], ["turn show"], ["cost"]])("%s has help", async (command) => {
    const { code, output } = await runCommand([...command.split(" "), "--help"]);
    expect(code).toBe(0);
    expect(output).toContain(`Usage: turnkeeper ${command}`);
    if (command === "turn") return;
    expect(output).toContain(`Example: turnkeeper ${command}`);
    expect(output).toContain("TURNKEEPER_API_KEY");
    expect(output).toContain("TURNKEEPER_PORT");
  });

  test("says in one line where no gateway answers, and how to start one", async () => {
    const url = `http://127.0.0.1:${await stepToFreePort(firstPort)}`;
    const { code, errors } = await runCommand(["turn", "list"], { TURNKEEPER_URL: url });
    expect(code).toBe(1);
    expect(errors.trim().split("\n")).toHaveLength(1);
    expect(errors).toContain(`No gateway answers at ${url} (ECONNREFUSED)`);
    expect(errors).toContain("turnkeeper serve");
  });

  test("refuses a time or a URL that is none", async () => {
    const time = await runCommand(["cost", "--since", "soon"]);
    expect(time).toMatchObject({ code: 1 });
    expect(time.errors).toContain("24h");
    expect(await runCommand(["cost", "--url", "localhost"])).toMatchObject({ code: 1 });
    const configured = await runCommand(["cost"], { TURNKEEPER_URL: "localhost" });
    expect(configured.errors).toContain("TURNKEEPER_URL");
  });
});

describeWith(["postgres"], "a process that waits for what it needs", () => {
  test.each(["worker", "dev"] as const)(
    "%s ends at SIGTERM as one that has drained",
    async (role) => {
      const folder = await mkdtemp(join(tmpdir(), "turnkeeper-waits-"));
      const { url } = await createTestDatabase();
      const nowhere = `127.0.0.1:${await stepToFreePort(firstPort)}`;
      const waits = [
        { databaseUrl: `postgres://${nowhere}/none`, message: "waiting for the database" },
        { databaseUrl: url, message: "waiting for Temporal" },
      ];
      for (const { databaseUrl, message } of waits) {
        const options = {
          databaseUrl,
          temporalAddress: nowhere,
          openaiBaseUrl: `http://${nowhere}`,
        };
        const environment = { TURNKEEPER_FOLDER: folder };
        const waiting = { ...options, role, taskQueue: "none", environment };
        const worker = await startWorkerProcess(waiting, message);
        expect(await worker.stop()).toBe(0);
        expect(worker.tail().join("\n")).not.toMatch(/Stopped|^ +at /m);
      }
      await rm(folder, { recursive: true });
    },
  );
});

describeWith(["postgres", "temporal"], "a worker in the middle of a call", () => {
  test("ends at once at a signal that comes later than a repeat of the first one", async () => {
    const { simulator, turnkeeper, startWorker, close } = await startCrashable();
    const worker = await startWorker();
    const pause = gate(1);
    simulator.script(text("", { deltas: ["One", " two"], pauseAfter: pause }));
    await turnkeeper.turns.start({ input: "Hi" });
    await pause.reached;
    const insisting = setInterval(() => worker.signal("SIGTERM"), 100);
    const exitCodeOfInterrupt = 130;
    expect(await worker.exited).toBe(exitCodeOfInterrupt);
    clearInterval(insisting);
    await close();
  });
});

describeWith(["postgres", "temporal"], "a command that asks a gateway that is there", () => {
  let parts: Crashable;
  let environment: Record<string, string>;
  let turnId: string;

  beforeAll(async () => {
    parts = await startCrashable();
    const port = await stepToFreePort(firstPort);
    const { secret } = await createApiKey(parts.database, "shop", "test");
    await parts.startWorker({
      role: "serve",
      environment: {
        TURNKEEPER_PORT: `${port}`,
        TURNKEEPER_TEMPORAL_UI_URL: "http://temporal.example/",
        TURNKEEPER_MODEL: "gpt-6.1-terra",
      },
    });
    environment = { TURNKEEPER_URL: `http://127.0.0.1:${port}/`, TURNKEEPER_API_KEY: secret };
    const usage = { inputTokens: 1_234, outputTokens: 56 };
    parts.simulator.script(fault.rateLimit({ ms: 120 }), text("Done.", { usage }));
    const { body } = await ask(
      `${environment["TURNKEEPER_URL"]}v1/responses`,
      "POST",
      { input: "Hi" },
      { authorization: `Bearer ${secret}` },
    );
    turnId = body.id as string;
  });

  afterAll(() => parts.close());

  test("lists turns, by its filters and as JSON", async () => {
    const { output, code } = await runCommand(["turn", "list"], environment);
    expect(code).toBe(0);
    const [head, row] = output.trim().split("\n");
    expect(head).toMatch(/^created \(UTC\) +turn +status +agent +took +tokens$/);
    expect(row).toContain(turnId);
    expect(row).toContain("completed");
    expect(row).toMatch(/1,290$/);
    const none = await runCommand(
      ["turn", "list", "--status", "failed", "--since", "1h"],
      environment,
    );
    expect(none.output).toBe("There are no such turns.\n");
    const json = await runCommand(["turn", "list", "--json"], environment);
    expect(JSON.parse(json.output)).toMatchObject({ data: [{ id: turnId }] });
  });

  test("tells a turn's story: failures, waits, tokens, cost, and where to look", async () => {
    const { output } = await runCommand(["turn", "show", turnId], environment);
    expect(output).toContain("status        completed");
    expect(output).toContain(`http://temporal.example/namespaces/default/workflows/${turnId}`);
    const story = output.slice(output.indexOf("  at  step"));
    expect(story).toMatch(/ 1 +1 +model gpt-6\.1-terra +rate_limited .* ~0 +~0 +~\$0\.00\n/);
    expect(story).toContain("Rate limit reached. (rate_limit_exceeded)");
    expect(story).toMatch(/waited \d+\.\ds\n/);
    expect(story).toMatch(/ 1 +2 +model gpt-6\.1-terra +used .* 1,234 +56 +\$0\.001514\n/);
    expect(story).toMatch(/used +1 +1,234 +0 +56 +0 +\$0\.001514 +1 exact\n/);
    expect(story).toMatch(/wasted +1 +0 +0 +0 +0 +\$0\.00 +1 estimated\n/);
    expect(output).not.toContain("\u001b");
    for (const line of story.split("\n")) expect(line.length).toBeLessThanOrEqual(100);
    const json = await runCommand(["turn", "show", turnId, "--json"], environment);
    expect(JSON.parse(json.output)).toMatchObject({
      id: turnId,
      temporal_url: expect.stringContaining(turnId) as string,
      model_calls: [
        { waited_ms: null, failure_code: "rate_limit_exceeded", certainty: "estimated" },
        { waited_ms: expect.any(Number) as number, failure_message: null, certainty: "exact" },
      ],
    });
  });

  test("does not add up costs that nobody knows", async () => {
    const setCost = (dollars: string | null) =>
      parts.database.query("UPDATE model_calls SET cost_usd = $1 WHERE outcome = 'used'", [
        dollars,
      ]);
    await setCost(null);
    const { output } = await runCommand(["turn", "show", turnId], environment);
    expect(output).toMatch(/used +1 +1,234 +0 +56 +0 +\? +1 exact\n/);
    await setCost("0.001514");
  });

  test("tells the cost, with what of it is estimated", async () => {
    const { output } = await runCommand(["cost", "--by", "model", "--since", "1h"], environment);
    expect(output).toMatch(/^model +turns +calls +wasted +input +output +cost +of it wasted\n/);
    expect(output).toMatch(/gpt-6\.1-terra +1 +2 +1 +1,234 +56 +~\$0\.001514 +\$0\.00\n/);
    expect(output).toMatch(/total +1 +2 +1 +1,234/);
    expect(output).toContain("1 estimated");
    const json = await runCommand(["cost", "--json"], environment);
    expect(JSON.parse(json.output)).toMatchObject({ by: "agent", total: { calls: 2 } });
    const none = await runCommand(["cost", "--until", "1h"], environment);
    expect(none.output).toBe("There are no such model calls.\n");
  });

  test("names the variable when the key is missing or wrong", async () => {
    const keyless = { TURNKEEPER_URL: environment["TURNKEEPER_URL"] ?? "" };
    const missing = await runCommand(["turn", "list"], keyless);
    expect(missing).toMatchObject({ code: 1 });
    expect(missing.errors).toContain("needs an API key: set TURNKEEPER_API_KEY");
    const wrong = await runCommand(["turn", "list"], {
      ...keyless,
      TURNKEEPER_API_KEY: "tk-wrong",
    });
    expect(wrong.errors).toContain("does not take this API key: set TURNKEEPER_API_KEY");
  });

  test("hands on what the gateway says against it, and knows what is no gateway", async () => {
    const unknown = await runCommand(["turn", "show", "resp_nowhere"], environment);
    expect(unknown).toMatchObject({ code: 1, output: "" });
    expect(unknown.errors).toContain("(response_not_found)");
    const limit = await runCommand(["turn", "list", "--limit", "0"], environment);
    expect(limit.errors).toContain("(invalid_value)");
    const simulator = parts.simulator.baseUrl.replace(/\/v1$/, "/nowhere");
    const wrong = await runCommand(["turn", "list", "--url", simulator], environment);
    expect(wrong.errors.trim().split("\n")).toHaveLength(1);
  });
});
