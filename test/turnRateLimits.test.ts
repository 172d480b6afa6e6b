import type { Client } from "@temporalio/client";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { apiError } from "../src/simulator/fault.ts";
import type { RetryAfter } from "../src/simulator/fault.ts";
import { fault, text } from "../src/simulator/server.ts";
import type { ScriptStep } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import type { ModelCallRecord } from "../src/store/modelCalls.ts";
import { defineAgent } from "../src/turn/agent.ts";
import type { TurnHandle } from "../src/turnHandle.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const agents = [
  defineAgent({ name: "default", model: "gpt-test" }),
  defineAgent({ name: "once", model: "gpt-once", limits: { maxAttemptsPerStep: 1 } }),
];

interface Waiting {
  failureClass: string;
  delayMs: number;
}

/** Waits until no worker has the turn's step, and Temporal keeps the time of its next attempt. */
async function untilWaiting(temporal: Client, turn: TurnHandle): Promise<Waiting> {
  const scheduled = 1;
  // A head start may come before Temporal knows of the turn.
  const describe = () =>
    temporal.workflow
      .getHandle(turn.id)
      .describe()
      .catch(() => null);
  let waiting: Waiting | null = null;
  const look = async (): Promise<Waiting | null> => {
    const [pending] = (await describe())?.raw.pendingActivities ?? [];
    if (pending?.state !== scheduled || (pending.attempt ?? 1) === 1) return null;
    const { seconds, nanos } = pending.currentRetryInterval ?? {};
    const delayMs = Number(seconds ?? 0) * 1_000 + (nanos ?? 0) / 1e6;
    return { failureClass: pending.lastFailure?.message ?? "", delayMs };
  };
  await expect.poll(async () => (waiting = await look())).not.toBeNull();
  return waiting as unknown as Waiting;
}

const said = (message: string) =>
  fault.status(429, { body: apiError(message, "tokens", "rate_limit_exceeded") });

function saidInStream(message: string): ScriptStep {
  const error = { code: "rate_limit_exceeded", message };
  const response = { id: "resp_1", object: "response", status: "failed", output: [], error };
  const data = JSON.stringify({ type: "response.failed", response });
  return fault.inject(2, `event: response.failed\ndata: ${data}\n\n`);
}

describeWith(["postgres", "temporal"], "a rate limit", () => {
  describe.each([
    ["of a turn that starts by Temporal", false],
    ["of a turn with a head start", true],
  ])("%s", (_, headStart) => {
    let deployment: Deployment;
    let temporal: Client;

    beforeAll(async () => {
      deployment = await deploy({ agents, headStart });
      ({ temporal } = deployment);
    });

    afterAll(() => deployment.close());

    afterEach(() => deployment.endScript());

    function start(model: string): Promise<TurnHandle> {
      return deployment.turnkeeper.turns.start({ input: "Go", model });
    }

    /** Waits until the turn's first call is on record as failed. */
    async function untilRefused({ id }: TurnHandle): Promise<void> {
      const failureClass = async () =>
        (await readModelCalls(deployment.database, "default", id))[0]?.failureClass;
      await expect.poll(failureClass).toBe("rate_limited");
    }

    /** What the ledger says of these turns is what the provider has billed, and all it was asked for. */
    async function expectLedger(...of: TurnHandle[]): Promise<ModelCallRecord[]> {
      const { database, simulator } = deployment;
      const ledger = await Promise.all(of.map(({ id }) => readModelCalls(database, "default", id)));
      const rows = ledger.flat();
      const ids = (calls: readonly { requestId: string | null }[]) =>
        calls.map(({ requestId }) => requestId ?? "").sort();
      expect(ids(rows)).toEqual(ids(simulator.bill));
      expect(simulator.requests).toHaveLength(rows.length);
      expect(rows.filter(({ outcome }) => outcome === "open")).toEqual([]);
      return rows.sort((one, other) => one.startedAt.getTime() - other.startedAt.getTime());
    }

    test.each<[string, (delayMs: number) => ScriptStep]>([
      ["retry-after-ms", (ms) => fault.rateLimit({ ms })],
      ["retry-after in seconds", (ms) => fault.rateLimit({ seconds: ms / 1_000 })],
      ["retry-after as a date", (ms) => fault.rateLimit({ date: new Date(Date.now() + ms) })],
      ["x-ratelimit-reset-requests", () => fault.rateLimit({ resetRequests: "8m0s" })],
      ["x-ratelimit-reset-tokens", () => fault.rateLimit({ resetTokens: "480s" })],
      ["a sentence", () => said("Rate limit reached. Please try again in 8m0s.")],
      ["a sentence of response.failed", () => saidInStream("Please try again in 480.0s.")],
    ])(
      "with its delay in %s is waited for in Temporal, not in the worker",
      async (form, refuse) => {
        const delayMs = 480_000;
        deployment.simulator.script(refuse(delayMs));
        const turn = await start(`gpt-${form.replaceAll(" ", "-")}`);
        const waiting = await untilWaiting(temporal, turn);
        expect(waiting.failureClass).toBe("rate_limited");
        // A date has whole seconds; calls that were told the same are spread over a tenth.
        expect(waiting.delayMs).toBeGreaterThan(delayMs - 5_000);
        expect(waiting.delayMs).toBeLessThan(delayMs * 1.1 + 1);
        await turn.cancel();
        expect((await ended(turn)).status).toBe("cancelled");
        await expectLedger(turn);
      },
    );

    test("holds back the model's other calls before they are sent, and no other model's", async () => {
      const { simulator } = deployment;
      simulator.script(fault.rateLimit({ seconds: 600 }));
      const first = await start("gpt-limited");
      await untilWaiting(temporal, first);
      const second = await start("gpt-limited");
      const waiting = await untilWaiting(temporal, second);
      expect(waiting.failureClass).toBe("rate_limited");
      // However long the provider says, after a minute a call finds out.
      expect(waiting.delayMs).toBeLessThan(90_000);
      simulator.script(text("Not slowed."));
      const other = await start("gpt-other");
      expect(await ended(other)).toMatchObject({ status: "completed", text: "Not slowed." });
      await second.cancel();
      expect((await ended(second)).status).toBe("cancelled");
      expect(await readModelCalls(deployment.database, "default", second.id)).toEqual([]);
      await first.cancel();
      await ended(first);
      await expectLedger(first, second, other);
    });

    test.each<[string, RetryAfter, number]>([
      ["when its delay is", { ms: 1_500 }, 1_500],
      ["after a short time where it names no delay", {}, 250],
    ])("is over for all %s, and a call that was held back has not failed", async (...row) => {
      const [, after, delayMs] = row;
      deployment.simulator.script(fault.rateLimit(after), text("One."), text("Two."));
      const first = await start("gpt-once");
      await untilRefused(first);
      // Its agent has the same model, and lets no call fail.
      const second = await start("once");
      const answers = [await ended(first), await ended(second)].map((turn) => turn.text);
      expect(answers.sort()).toEqual(["One.", "Two."]);
      const [refused, ...others] = await expectLedger(first, second);
      expect(others).toHaveLength(2);
      for (const { startedAt } of others) {
        const waitedMs = startedAt.getTime() - (refused?.startedAt.getTime() ?? 0);
        // Only that it waited; the clocks of Temporal and of this process differ by a little.
        expect(waitedMs).toBeGreaterThan(delayMs * 0.9);
      }
    });
  });
});
