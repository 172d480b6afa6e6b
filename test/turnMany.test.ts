import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { calls, fault, reasoning, join, text, when } from "../src/simulator/server.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const echo = defineTool({
  name: "echo",
  description: "Answers at once.",
  parameters: { type: "object", properties: {} },
  handler: () => "echo",
});

const faults: Record<string, () => ScriptStep> = {
  rateLimit: () => fault.rateLimit({ ms: 5 }),
  overload: () => fault.status(503),
  destroy: () => fault.destroy(),
  reset: () => fault.reset(3),
  eof: () => fault.eof(2),
  errorEvent: () => fault.errorEvent(4),
  failed: () => fault.failed(1),
};

/** What the model does in one turn: rounds of tools, each call with what goes wrong before it. */
const story = fc.record({
  rounds: fc.array(
    fc.record({
      said: fc.string({ unit: "grapheme", minLength: 1, maxLength: 60 }),
      thinks: fc.boolean(),
      tools: fc.integer({ min: 1, max: 3 }),
      fault: fc.option(fc.constantFrom(...Object.keys(faults)), { freq: 2, nil: null }),
    }),
    { maxLength: 3 },
  ),
  answer: fc.string({ unit: "grapheme", minLength: 1, maxLength: 400 }),
  fault: fc.option(fc.constantFrom(...Object.keys(faults)), { freq: 2, nil: null }),
});

const turnsAtOnce = 30;
const manyTimeoutMs = 60_000;

describeWith(["postgres", "temporal"], "many turns at once", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({
      tools: [echo],
      agents: [defineAgent({ name: "default", model: "gpt-test", tools: ["echo"] })],
    });
  });

  afterAll(() => deployment.close());

  test(
    "each with its own tools and faults, are each exact and each in the ledger",
    async () => {
      const { simulator, turnkeeper, database } = deployment;
      const stories = fc.sample(story, { numRuns: turnsAtOnce, seed: 7 });
      const expected = stories.map(({ rounds, answer, fault: last }, at) => {
        const scripted = [...rounds, { said: answer, thinks: false, tools: 0, fault: last }];
        const steps = scripted.flatMap((each) => [
          ...(each.fault === null ? [] : [faults[each.fault]?.() as ScriptStep]),
          join(
            ...(each.thinks ? [reasoning("Hm.")] : []),
            text("", { deltas: each.said.match(/[^]{1,7}/gu) ?? [] }),
            ...Array.from({ length: each.tools }, () => calls([{ name: "echo", arguments: {} }])),
          ),
        ]);
        // Its own script, told by the first words of its input.
        const isOwn = ({ items }: { items: readonly unknown[] }) =>
          JSON.stringify(items[0]).includes(`"turn ${at}."`);
        simulator.script(...steps.map((step) => when(isOwn, step)));
        return { calls: steps.length, text: scripted.map(({ said }) => said).join("") };
      });
      const turns = await Promise.all(
        stories.map((_, at) => turnkeeper.turns.start({ input: `turn ${at}.` })),
      );
      await Promise.all(
        turns.map(async (turn, at) => {
          const wanted = expected[at];
          expect(await ended(turn)).toMatchObject({ status: "completed", text: wanted?.text });
          const ledger = await readModelCalls(database, "default", turn.id);
          expect(ledger).toHaveLength(wanted?.calls ?? 0);
          expect(ledger.every(({ outcome }) => outcome !== "open")).toBe(true);
        }),
      );
      simulator.assertConsumed();
    },
    manyTimeoutMs,
  );
});
