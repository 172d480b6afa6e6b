import { afterEach, beforeEach, expect, test } from "vitest";
import type { TurnHandle } from "../../src/turnHandle.ts";
import { gate, text } from "../../src/simulator/server.ts";
import type { SimulatedRequest } from "../../src/simulator/server.ts";
import { readModelCalls } from "../../src/store/modelCalls.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { describeWith } from "../setup/servers.ts";
import { ended } from "../setup/turnStream.ts";
import { untilSaid } from "../setup/untilSaid.ts";

const deltas = ["One", " two", " three", " four", " five", " six"];
const crashTimeoutMs = 120_000;

const isResume = ({ path }: SimulatedRequest) => path.includes("stream=true");

describeWith(["postgres", "temporal"], "a turn whose responses the provider keeps", () => {
  let parts: Crashable;

  beforeEach(async () => {
    parts = await startCrashable();
  });

  afterEach(() => parts.close());

  const startWorker = () =>
    parts.startWorker({
      environment: { TURNKEEPER_DURABILITY: "background", TURNKEEPER_SHUTDOWN_GRACE_MS: "200" },
    });

  /** Every token once, in one item, bought once [6] [7]. */
  async function expectExact(turn: TurnHandle): Promise<void> {
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "completed", text: deltas.join("") });
    const messages = end.accumulated.output.filter((item) => item.type === "message");
    expect(messages).toHaveLength(1);
    const [call, ...more] = await readModelCalls(parts.database, "default", turn.id);
    expect(more).toEqual([]);
    const [billed] = parts.simulator.bill;
    expect(parts.simulator.bill).toHaveLength(1);
    expect(call).toMatchObject({
      outcome: "used",
      certainty: "exact",
      responseId: billed?.responseId,
      tokens: { inputTokens: billed?.inputTokens, outputTokens: billed?.outputTokens },
    });
  }

  test(
    "goes on with the response after kill -9, behind the last event on record",
    async () => {
      const [first, second] = [gate(2), gate(4)];
      const worker = await startWorker();
      parts.simulator.script(text("", { deltas, pauseAfter: [first, second] }));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await first.reached;
      await untilSaid(turn);
      await worker.kill();
      first.open();
      await second.reached;
      await startWorker();
      await parts.simulator.waitFor("request", isResume);
      second.open();
      await expectExact(turn);
    },
    crashTimeoutMs,
  );

  test(
    "takes a response that has ended while no worker was there",
    async () => {
      const pause = gate(2);
      const worker = await startWorker();
      parts.simulator.script(text("", { deltas, pauseAfter: pause }));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      await untilSaid(turn);
      await worker.kill();
      pause.open();
      await parts.simulator.waitFor("finished");
      await startWorker();
      await expectExact(turn);
    },
    crashTimeoutMs,
  );

  test(
    "loses no token when SIGTERM hands it over",
    async () => {
      const pause = gate(2);
      const worker = await startWorker();
      parts.simulator.script(text("", { deltas, pauseAfter: pause }));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      await untilSaid(turn);
      await startWorker();
      expect(await worker.stop()).toBe(0);
      await parts.simulator.waitFor("request", isResume);
      pause.open();
      await expectExact(turn);
    },
    crashTimeoutMs,
  );
});
