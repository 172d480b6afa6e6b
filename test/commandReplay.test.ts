import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { Progress } from "../src/commands/progress.ts";
import { fault, text } from "../src/simulator/server.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { runCommand } from "./setup/runCommand.ts";
import type { Ran } from "./setup/runCommand.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

describeWith(["postgres", "temporal"], "turnkeeper turn replay", () => {
  let served: Served;

  beforeAll(async () => {
    served = await serve();
  });

  afterAll(() => served.close());

  afterEach(() => served.endScript());

  const run = (...args: string[]): Promise<Ran> =>
    runCommand(["turn", "replay", ...args], { TURNKEEPER_URL: served.gateway.url });

  async function turn(step: Parameters<Served["simulator"]["script"]>[0]): Promise<string> {
    served.simulator.script(step);
    const handle = await served.turnkeeper.turns.start({ input: "Hi", agent: "default" });
    await ended(handle);
    return handle.id;
  }

  test("replays one turn, waits for its end, and says by its exit code whether it completed", async () => {
    const id = await turn(fault.quota());
    served.simulator.script(text("Done."), fault.quota());
    const done = await run(id);
    expect(done).toMatchObject({ code: 0 });
    expect(done.output).toMatch(new RegExp(`^${id} replayed as resp_\\w+: completed\\n$`));
    const failed = await run(id, "--fork");
    expect(failed).toMatchObject({ code: 1 });
    expect(failed.output).toContain("failed: quota_exhausted");
  });

  test("compares a dry run with its turn", async () => {
    const id = await turn(text("It is 3."));
    served.simulator.script(text("It is 4."), text("It is 3."));
    const other = await run(id, "--dry-run", "--model", "gpt-other");
    expect(other).toMatchObject({ code: 0 });
    expect(other.output).toMatch(/^model +gpt-test +gpt-other$/m);
    expect(other.output).toContain("The texts differ behind 6 characters:\n- 3\n+ 4\n");
    const same = await run(id, "--dry-run", "--json");
    expect(JSON.parse(same.output)).toMatchObject([
      { original: id, comparison: { difference: null } },
    ]);
  });

  test("replays what a query finds, a line for each in a pipe, and each turn once", async () => {
    const since = new Date().toISOString();
    const ids = [await turn(fault.quota()), await turn(fault.quota()), await turn(fault.quota())];
    served.simulator.script(text("Done."), text("Done."), fault.quota());
    const query = ["--status", "failed", "--since", since, "--concurrency", "2"];
    const batch = await run(...query);
    expect(batch.code).toBe(1);
    const lines = batch.errors.trim().split("\n");
    expect(lines.map((line) => line.split(" ")[0])).toEqual(["1/3", "2/3", "3/3"]);
    for (const id of ids) expect(batch.errors).toContain(id);
    expect(batch.output).toMatch(/2 +completed\n +1 +failed: quota_exhausted\n$/);
    // What has a replay is left to it: the one that failed is replayed in its turn.
    served.simulator.script(text("Done."));
    const again = await run(...query);
    expect(again).toMatchObject({ code: 0 });
    expect(again.errors).toMatch(/^1\/1 /);
    expect(again.output).toMatch(/1 +completed\n$/);
    const none = await run("--status", "cancelled", "--since", since);
    expect(none).toMatchObject({ code: 0, output: "There are no such turns.\n" });
  });

  test("hands on what the gateway says against it", async () => {
    const unknown = await run("resp_nobody");
    expect(unknown).toMatchObject({ code: 1 });
    expect(unknown.errors).toContain("(response_not_found)");
    const wrong = await run("resp_nobody", "--status", "failed");
    expect(wrong.errors).toContain("name a turn, or a query with --status");
    const both = await run("resp_nobody", "--since", "2h", "--concurrency", "1");
    expect(both).toMatchObject({ code: 1 });
    expect(both.errors).toContain("--since is for a query with --status");
    const help = await run("--help");
    expect(help.output).toContain("turnkeeper turn replay --status failed --since 2h");
  });

  test("over HTTP takes the key of a request, and refuses what it does not know", async () => {
    const id = await turn(fault.quota());
    served.simulator.script(text("Done."));
    const path = `/turnkeeper/v1/turns/${id}/replay`;
    const key = { "idempotency-key": "once" };
    const first = await served.ask("POST", path, undefined, key);
    expect(first).toMatchObject({ status: 200, body: { object: "turn", replay_of: id } });
    // `null` means as if it were not there, so this is the same request.
    for (const body of [undefined, { instructions: null, from_start: null, tools: null }]) {
      const again = await served.ask("POST", path, body, key);
      expect(again.body.id).toBe(first.body.id);
    }
    await ended(await served.turnkeeper.turns.get(first.body.id as string));
    const unknown = await served.ask("POST", path, { temperature: 1 });
    expect(unknown).toMatchObject({ status: 400, body: { error: { code: "unknown_parameter" } } });
    const strategy = await served.ask("POST", path, { context_strategy: "summary" });
    expect(strategy).toMatchObject({ status: 400, body: { error: { code: "invalid_value" } } });
    const comparison = await served.ask("GET", `/turnkeeper/v1/turns/${id}/comparison`);
    expect(comparison).toMatchObject({ status: 400, body: { error: { code: "invalid_value" } } });
  });
});

describe("progress on a terminal", () => {
  test("is a bar that is drawn over; only lines of failures stay", () => {
    let written = "";
    const progress = new Progress(2, { isTTY: true, write: (more) => (written += more) });
    progress.add("fine", false);
    progress.add("broken", true);
    expect(written).not.toContain("fine");
    expect(written).toContain("broken\n");
    expect(written).toContain("[###############...............] 1/2");
    expect(written.endsWith("[##############################] 2/2, 1 not completed\n")).toBe(true);
  });
});
