import { afterEach, beforeEach, expect, test } from "vitest";
import type { TurnHandle } from "../../src/turnHandle.ts";
import { gate, text } from "../../src/simulator/server.ts";
import { listAgents } from "../../src/store/agents.ts";
import { readHistory } from "../../src/store/conversations.ts";
import { readModelCalls } from "../../src/store/modelCalls.ts";
import { outputText } from "../../src/turn/items.ts";
import { prepareTurn } from "../../src/turn/prepare.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { startProxy } from "../setup/proxy.ts";
import { describeWith, sharedTemporal } from "../setup/servers.ts";
import { admit } from "../setup/storeTurns.ts";
import { ended } from "../setup/turnStream.ts";
import { untilSaid } from "../setup/untilSaid.ts";

const answer = { deltas: ["One", " two", " three", " four"] };
const whole = "One two three four";
const crashTimeoutMs = 120_000;

describeWith(["postgres", "temporal"], "a turn whose process dies", () => {
  let parts: Crashable;

  beforeEach(async () => {
    parts = await startCrashable();
  });

  afterEach(() => parts.close());

  /** What must hold of every turn that ended, however often its processes died. */
  async function expectExact(
    turn: TurnHandle,
    { modelCalls = 1, abandonedTexts = 0 } = {},
  ): Promise<void> {
    const end = await ended(turn);
    expect(end).toMatchObject({ status: "completed", text: whole });
    const statuses = end.accumulated.output.map((item) => "status" in item && item.status);
    const incomplete = Array.from({ length: abandonedTexts }, () => "incomplete");
    expect(statuses).toEqual([...incomplete, "completed"]);
    const history = await readHistory(parts.database, "default", turn.conversationId);
    expect(outputText(history)).toBe(whole);
    expect(history).toHaveLength(2);
    const ledger = await readModelCalls(parts.database, "default", turn.id);
    expect(ledger).toHaveLength(modelCalls);
    expect(parts.simulator.bill).toHaveLength(modelCalls);
    expect(ledger.map((call) => call.outcome)).toEqual([
      ...Array.from({ length: modelCalls - 1 }, () => "wasted"),
      "used",
    ]);
  }

  test(
    "after it was admitted and before Temporal heard of it: the janitor starts it",
    async () => {
      await parts.startWorker();
      parts.simulator.script(text("", answer));
      // Of the agent as the worker has registered it.
      const prepared = prepareTurn({ input: "Hi" }, await listAgents(parts.database));
      const turn = await admit(parts.database, {}, prepared);
      await expectExact(await parts.turnkeeper.turns.get(turn.id));
    },
    crashTimeoutMs,
  );

  test(
    "after the model's first event: another worker calls again",
    async () => {
      const pause = gate(0);
      const first = await parts.startWorker();
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      await first.kill();
      await parts.startWorker();
      await expectExact(turn, { modelCalls: 2 });
    },
    crashTimeoutMs,
  );

  test(
    "in the middle of the stream: another worker calls again, and the abandoned text is closed as incomplete",
    async () => {
      const pause = gate(2);
      const first = await parts.startWorker();
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      await untilSaid(turn);
      await first.kill();
      await parts.startWorker();
      await expectExact(turn, { modelCalls: 2, abandonedTexts: 1 });
    },
    crashTimeoutMs,
  );

  test(
    "after the ending was committed and before Temporal knew: nothing runs again",
    async () => {
      const proxy = await startProxy(sharedTemporal().address);
      const pause = gate(2);
      const first = await parts.startWorker({ temporalAddress: proxy.address });
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      proxy.freeze();
      pause.open();
      await turn.result();
      await first.kill();
      await parts.startWorker();
      await parts.temporal.workflow.getHandle(turn.id).result();
      await expectExact(turn);
      await proxy.close();
    },
    crashTimeoutMs,
  );

  test(
    "while it was paused past its heartbeat: it changes nothing when it wakes",
    async () => {
      const pause = gate(2);
      const sleeper = await parts.startWorker();
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      await untilSaid(turn);
      sleeper.signal("SIGSTOP");
      await parts.startWorker();
      await turn.result();
      // The sleeper finds the rest of its answer in its socket and tries to end the turn with it.
      pause.open();
      sleeper.signal("SIGCONT");
      await parts.simulator.waitFor("closed");
      expect(await sleeper.stop()).toBe(0);
      await expectExact(turn, { modelCalls: 2, abandonedTexts: 1 });
    },
    crashTimeoutMs,
  );
});
