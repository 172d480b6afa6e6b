import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { always, calls, gate, text } from "../src/simulator/server.ts";
import type { SimulatedRequest } from "../src/simulator/server.ts";
import { createConversation, readHistory } from "../src/store/conversations.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { newId } from "../src/turn/ids.ts";
import type { Item } from "../src/turn/items.ts";
import type { TurnHandle } from "../src/turnHandle.ts";
import { serve } from "./setup/gateway.ts";
import type { Served } from "./setup/gateway.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";
import { untilSaid } from "./setup/untilSaid.ts";

let called = Promise.withResolvers<void>();

const wait = defineTool({
  name: "wait",
  description: "Never ends by itself.",
  parameters: { type: "object", properties: {} },
  handler() {
    called.resolve();
    return new Promise(() => {});
  },
});

/** Who said what, or what kind of item it is. */
function lines(items: readonly Item[]): string[] {
  return items.map((item) => {
    const content = item["content"] as { text: string }[] | undefined;
    return content === undefined ? item.type : content.map(({ text }) => text).join("");
  });
}

const shownTo = (request: SimulatedRequest | undefined) =>
  lines((request?.items ?? []) as unknown as Item[]);

describeWith(["postgres", "temporal"], "[2][12] a turn that interrupts", () => {
  let served: Served;
  let conversation: string;

  beforeAll(async () => {
    served = await serve({
      tools: [wait],
      agents: [defineAgent({ name: "default", model: "gpt-test", tools: ["wait"] })],
      janitor: { roundMs: 200, patienceMs: 60_000 },
    });
  });

  afterAll(() => served.close());

  afterEach(() => served.endScript());

  const say = (input: string, whenBusy: "queue" | "interrupt" = "interrupt"): Promise<TurnHandle> =>
    served.turnkeeper.turns.start({ input, conversation }, { whenBusy });

  /** A turn that has said `One two` and pauses. */
  async function startPaused(): Promise<TurnHandle> {
    ({ id: conversation } = await createConversation(served.database, "default", {}, []));
    const pause = gate(2);
    served.simulator.script(text("", { deltas: ["One", " two", " three"], pauseAfter: pause }));
    const turn = await say("Count");
    await pause.reached;
    await untilSaid(turn, "One two");
    return turn;
  }

  test("cancels the one that runs, and the model sees what that one had said", async () => {
    const { simulator, database } = served;
    const first = await startPaused();
    const queued = await say("Queued", "queue");
    simulator.script(text("Stopped."), text("Later."));
    const second = await say("Stop");
    await simulator.waitFor("aborted");
    expect(await ended(first)).toMatchObject({
      status: "cancelled",
      text: "One two",
      response: { output: [{ status: "incomplete" }] },
    });
    expect(await ended(second)).toMatchObject({ status: "completed", text: "Stopped." });
    expect(shownTo(simulator.requests[1])).toEqual(["Count", "One two", "Stop"]);
    expect(await ended(queued)).toMatchObject({ status: "completed", text: "Later." });
    const history = await readHistory(database, "default", conversation);
    const all = ["Count", "One two", "Stop", "Stopped.", "Queued", "Later."];
    expect(lines(history)).toEqual(all);
  });

  test("may name the response that runs as the previous one", async () => {
    const { simulator, turnkeeper } = served;
    const first = await startPaused();
    simulator.script(text("Stopped."));
    const request = { input: "Stop", previous_response_id: first.id };
    await expect(turnkeeper.turns.start(request, { whenBusy: "queue" })).rejects.toMatchObject({
      code: "conversation_busy",
    });
    const second = await turnkeeper.turns.start(request, { whenBusy: "interrupt" });
    expect(second.conversationId).toBe(conversation);
    expect((await ended(first)).status).toBe("cancelled");
    expect(await ended(second)).toMatchObject({ status: "completed", text: "Stopped." });
    expect(shownTo(simulator.requests[1])).toEqual(["Count", "One two", "Stop"]);
  });

  test("[9] during a tool leaves a call whose pair is made whole for the model", async () => {
    const { simulator } = served;
    ({ id: conversation } = await createConversation(served.database, "default", {}, []));
    called = Promise.withResolvers();
    simulator.script(calls([{ name: "wait", arguments: {} }], { text: "Waiting." }));
    const first = await say("Wait");
    await called.promise;
    simulator.script(text("Stopped."));
    const second = await say("Stop");
    expect(await ended(second)).toMatchObject({ status: "completed", text: "Stopped." });
    expect(await ended(first)).toMatchObject({ status: "cancelled", text: "Waiting." });
    const pair = ["function_call", "function_call_output"];
    expect(shownTo(simulator.requests.at(-1))).toEqual(["Wait", "Waiting.", ...pair, "Stop"]);
  });

  test("is itself interrupted by a newer one, before or after it has begun, and its input stays", async () => {
    const { simulator } = served;
    const first = await startPaused();
    // However far each has got by the time of the next one, the last one is answered.
    simulator.script(always(({ items }) => text(`Answer to ${items.length} items.`)));
    const turns = [first];
    for (const input of ["A", "B", "C", "D"]) turns.push(await say(input));
    const last = turns.pop() as TurnHandle;
    expect(await ended(last)).toMatchObject({ status: "completed" });
    for (const turn of turns) await ended(turn);
    const asked = shownTo(simulator.requests.at(-1)).filter((line) => !line.startsWith("Answer"));
    expect(asked).toEqual(["Count", "One two", "A", "B", "C", "D"]);
  });

  test("over HTTP does the same", async () => {
    const { simulator, client } = served;
    const first = await startPaused();
    simulator.script(text("Stopped."));
    const headers = { "x-turnkeeper-when-busy": "interrupt" };
    const response = await client.responses.create({ input: "Stop", conversation }, { headers });
    expect(response.output_text).toBe("Stopped.");
    expect(await ended(first)).toMatchObject({ status: "cancelled", text: "One two" });
  });

  test("started in Temporal does the same, and closes the workflow of the one it interrupts", async () => {
    const { simulator, taskQueue, temporal, turnkeeper } = served;
    const first = await startPaused();
    simulator.script(text("Stopped."));
    const second = await temporal.workflow.start("conversationTurn", {
      taskQueue,
      workflowId: newId("turn"),
      args: [{ when_busy: "interrupt", request: { input: "Stop", conversation } }],
    });
    expect(await second.result()).toEqual({ status: "completed" });
    expect(await temporal.workflow.getHandle(first.id).result()).toEqual({ status: "cancelled" });
    const handle = await turnkeeper.turns.get(second.workflowId);
    expect(await ended(handle)).toMatchObject({ text: "Stopped." });
  });
});
