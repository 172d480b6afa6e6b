import { accumulateResponse } from "openai/lib/responses/ResponseAccumulator";
import type { Response } from "openai/resources/responses/responses";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { TurnHandle } from "../../src/turnHandle.ts";
import { gate, text } from "../../src/simulator/server.ts";
import { admitTurn } from "../../src/store/admission.ts";
import { listAgents } from "../../src/store/agents.ts";
import { readHistory } from "../../src/store/conversations.ts";
import { readModelCalls } from "../../src/store/modelCalls.ts";
import { newId } from "../../src/turn/ids.ts";
import { outputText } from "../../src/turn/items.ts";
import { prepareTurn } from "../../src/turn/prepare.ts";
import { startCrashable } from "../setup/crashable.ts";
import type { Crashable } from "../setup/crashable.ts";
import { startProxy } from "../setup/proxy.ts";
import { describeWith, sharedTemporal } from "../setup/servers.ts";

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
  async function expectExact(turn: TurnHandle, modelCalls: number): Promise<void> {
    const result = await turn.result();
    expect(result).toMatchObject({ status: "completed", text: whole });
    const events = await Array.fromAsync(turn.events());
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
    const ends = events.filter((event) => event.type === "response.completed");
    expect(ends).toHaveLength(1);
    let seen: Response | undefined;
    for (const event of events) seen = accumulateResponse(event as never, seen);
    expect(seen?.output_text).toBe(whole);
    expect(everyItemIsClosed(events)).toBe(true);
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
      const agents = await listAgents(parts.database);
      const { turn } = await admitTurn(parts.database, {
        ...prepareTurn({ input: "Hi" }, agents),
        turnId: newId("turn"),
        project: "default",
        idempotencyKey: null,
        apiKeyId: null,
        whenBusy: "reject",
        disconnectGraceMs: null,
      });
      await expectExact(await parts.turnkeeper.turns.get(turn.id), 1);
    },
    crashTimeoutMs,
  );

  test.each([
    ["after the model's first event", 0],
    ["in the middle of the stream", 2],
  ])(
    "%s: another worker calls again, and the abandoned text is closed as incomplete",
    async (_, deltas) => {
      const pause = gate(deltas);
      const first = await parts.startWorker();
      parts.simulator.script(text("", { ...answer, pauseAfter: pause }), text("", answer));
      const turn = await parts.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      if (deltas > 0) await firstDelta(turn);
      await first.kill();
      await parts.startWorker();
      await expectExact(turn, 2);
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
      await expectExact(turn, 1);
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
      await firstDelta(turn);
      sleeper.signal("SIGSTOP");
      await parts.startWorker();
      await turn.result();
      // The sleeper finds the rest of its answer in its socket and tries to end the turn with it.
      pause.open();
      sleeper.signal("SIGCONT");
      await parts.simulator.waitFor("closed");
      expect(await sleeper.stop()).toBe(0);
      await expectExact(turn, 2);
    },
    crashTimeoutMs,
  );
});

async function firstDelta(turn: TurnHandle): Promise<void> {
  for await (const event of turn.events()) {
    if (event.type === "response.output_text.delta") return;
  }
}

function everyItemIsClosed(events: { type: string; output_index?: unknown }[]): boolean {
  const places = (type: string) =>
    events.filter((event) => event.type === type).map((event) => event.output_index as number);
  const added = places("response.output_item.added");
  const done = places("response.output_item.done");
  return (
    added.every((place, at) => place === at && done.includes(place)) && added.length === done.length
  );
}
