import { WorkflowNotFoundError } from "@temporalio/client";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { calls, fault, text } from "../src/simulator/server.ts";
import type { BilledCall, SimulatedRequest, Simulator } from "../src/simulator/server.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { unansweredCalls } from "../src/turn/pairs.ts";
import type { TurnHandle } from "../src/turnHandle.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const ways = ["client", "http", "temporal"] as const;
type Way = (typeof ways)[number];

/** A moment of a turn: so many things have happened, and the event loop has gone round so often since. */
interface Moment {
  happened: number;
  loops: number;
}

interface Circumstances {
  headStart: boolean;
  durability?: "foreground" | "background";
}

const manyTurnsTimeoutMs = 120_000;

/** Requests, their deltas and tools, the delay before a retry, and the last answer. */
const maxHappened = 26;

const moments = fc.record({
  way: fc.constantFrom(...ways),
  at: fc.record({ happened: fc.nat(maxHappened), loops: fc.nat(30) }),
});

/** Counts what happens to a turn, at the model and in the tools. */
class Happenings {
  #count = 0;
  #waiters: { at: number; resolve: () => void }[] = [];

  add(): void {
    this.#count += 1;
    for (const waiter of this.#waiters) if (waiter.at <= this.#count) waiter.resolve();
  }

  reach(at: number): Promise<void> {
    if (at <= this.#count) return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiters.push({ at, resolve });
    return promise;
  }
}

let happenings = new Happenings();

/** Does not heed its signal: nobody may wait for it. */
const work = defineTool({
  name: "work",
  description: "Works for a moment.",
  parameters: { type: "object", properties: {} },
  async handler() {
    happenings.add();
    await new Promise((resolve) => setTimeout(resolve, 5));
    happenings.add();
    return "worked";
  },
});

function scriptTurn(simulator: Simulator, deltaDelayMs: number): void {
  const twice = () => [
    { name: "work", arguments: {} },
    { name: "work", arguments: {} },
  ];
  const slowly = { deltaDelayMs };
  simulator.script(
    calls(twice(), { text: "I am at it", ...slowly }),
    fault.rateLimit({ ms: 100 }),
    calls(twice(), { text: "Once more", ...slowly }),
    text("All is done now", slowly),
  );
  // A simulator that was reset tells nobody any more.
  const heard = happenings;
  const listen = async (event: "request" | "delta" | "finished"): Promise<void> => {
    for (;;) {
      await simulator.waitFor(event);
      heard.add();
    }
  };
  for (const event of ["request", "delta", "finished"] as const) void listen(event);
}

describeWith(["postgres", "temporal"], "[12] a turn that is cancelled at any moment", () => {
  describe("when Temporal starts it", () => cancelAnywhere({ headStart: false }));
  describe("when it has a head start", () => cancelAnywhere({ headStart: true }));
  describe("when the provider keeps its responses", () =>
    cancelAnywhere({ headStart: false, durability: "background" }));
});

function cancelAnywhere({ headStart, durability = "foreground" }: Circumstances): void {
  let served: Served;

  beforeAll(async () => {
    served = await serve({
      tools: [work],
      agents: [defineAgent({ name: "default", model: "gpt-test", tools: ["work"], durability })],
      headStart,
    });
  });

  afterAll(() => served.close());

  async function cancelBy(way: Way, turn: TurnHandle): Promise<void> {
    if (way === "client") return turn.cancel();
    if (way === "http") {
      const { status } = await served.ask("POST", `/v1/responses/${turn.id}/cancel`);
      return expect(status).toBe(200);
    }
    await served.temporal.workflow
      .getHandle(turn.id)
      .cancel()
      .catch((error: unknown) => {
        // Where Temporal does not know the turn yet, or no more, its UI has nothing to cancel.
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      });
  }

  /** Each call on the bill has its row, used ones to the token; one more may not have left. */
  async function expectLedgerMatchesBill(turn: TurnHandle, input: string): Promise<void> {
    const ledger = await readModelCalls(served.database, "default", turn.id);
    const { bill, requests } = served.simulator;
    // A request that was cut off may be read after the next turn has begun.
    const own = requests.filter(({ body }) => JSON.stringify(body).includes(input));
    const billed = bill.filter(({ requestId }) => own.some((each) => each.requestId === requestId));
    expect(ledger.filter((call) => call.outcome === "open")).toEqual([]);
    expect(ledger.length - billed.length).toBeGreaterThanOrEqual(0);
    expect(ledger.length - billed.length).toBeLessThanOrEqual(1);
    for (const row of ledger.filter((call) => call.outcome === "used")) {
      const call = billed.find((each) => each.responseId === row.responseId);
      expect(call).toMatchObject({ status: "completed", aborted: false });
      const { inputTokens, outputTokens } = call as BilledCall;
      expect(row.tokens).toMatchObject({ inputTokens, outputTokens });
    }
  }

  /** A kept response goes on until it is cancelled at the provider, unless its end has come before. */
  async function expectNothingGoesOn(turn: TurnHandle): Promise<void> {
    const { bill, requests } = served.simulator;
    const paths = () => requests.map(({ path }) => path);
    const ledger = await readModelCalls(served.database, "default", turn.id);
    for (const { outcome, responseId } of ledger) {
      const hasEnded = bill.find((each) => each.responseId === responseId)?.finalEventSent;
      if (outcome === "used" || responseId === null || hasEnded) continue;
      await expect.poll(paths).toContain(`/v1/responses/${responseId}/cancel`);
    }
  }

  /** How the turn has ended. */
  async function cancelAt(way: Way, at: Moment): Promise<string> {
    const { simulator, turnkeeper } = served;
    happenings = new Happenings();
    simulator.reset();
    // Slow enough for a cancel to find a kept response that still goes on.
    scriptTurn(simulator, durability === "background" ? 20 : 2);
    const input = `Work twice (${crypto.randomUUID()})`;
    const turn = await turnkeeper.turns.start({ input });
    const end = turn.result();
    await Promise.race([happenings.reach(at.happened), end]);
    for (let loop = 0; loop < at.loops; loop++) await new Promise(setImmediate);
    await cancelBy(way, turn);
    // Checks that every item is closed and that the stream has one end.
    const { status, response } = await ended(turn);
    expect(["completed", "cancelled"]).toContain(status);
    const everything = 7;
    if (status === "completed") expect(response.output).toHaveLength(everything);
    await expect.poll(() => simulator.connections()).toBe(0);
    await expectLedgerMatchesBill(turn, input);
    if (durability === "background") await expectNothingGoesOn(turn);
    simulator.reset();
    await expectUsable(turn);
    return status;
  }

  /** The next turn starts at once, and what the model is shown is whole. */
  async function expectUsable(turn: TurnHandle): Promise<void> {
    const { simulator, turnkeeper } = served;
    simulator.script(text("Going on."));
    const { conversationId: conversation } = turn;
    const next = await turnkeeper.turns.start({ input: "Go on", conversation });
    expect(await ended(next)).toMatchObject({ status: "completed", text: "Going on." });
    const isCall = ({ path }: SimulatedRequest) => path === "/v1/responses";
    // A kept response may still be cancelled behind it.
    const { items } = simulator.requests.findLast(isCall) as SimulatedRequest;
    expect(unansweredCalls(items as never)).toEqual([]);
  }

  test(
    "ends as one of the two, and its conversation goes on at once",
    async () => {
      const cancelledBy = new Set<Way>();
      const property = fc.asyncProperty(moments, async ({ way, at }) => {
        if ((await cancelAt(way, at)) === "cancelled") cancelledBy.add(way);
      });
      // At the first calls of tools, with two calls of the model and a delay still to come.
      const early = ways.map((way): [{ way: Way; at: Moment }] => [
        { way, at: { happened: 6, loops: 0 } },
      ]);
      await fc.assert(property, { numRuns: 18, endOnFailure: true, examples: early });
      expect([...cancelledBy].sort()).toEqual([...ways].sort());
    },
    manyTurnsTimeoutMs,
  );
}
