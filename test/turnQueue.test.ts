import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import type { StartOptions } from "../src/turns.ts";
import { always, calls, fault, gate, text } from "../src/simulator/server.ts";
import type { SimulatedRequest } from "../src/simulator/server.ts";
import { createConversation, readHistory } from "../src/store/conversations.ts";
import { connectLazily } from "../src/temporal.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { newId } from "../src/turn/ids.ts";
import { outputText } from "../src/turn/items.ts";
import type { Item } from "../src/turn/items.ts";
import { maxQueuedTurns } from "../src/turn/limits.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith, sharedTemporal } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

/** Shorter than the time after which a waiting turn looks again by itself. */
const signalTimeoutMs = 10_000;

const clientTool = { type: "function", name: "ask_user", parameters: { type: "object" } };

/** What the model was told, as one line: who said what. */
function saidTo(request: SimulatedRequest | undefined): string[] {
  const items = (request?.body.input ?? []) as unknown as Item[];
  return items.map((item) => {
    const content = item["content"] as string | { text: string }[];
    return typeof content === "string" ? content : content.map((part) => part.text).join("");
  });
}

describeWith(["postgres", "temporal"], "turns of one conversation", () => {
  let deployment: Deployment;
  let conversation: string;

  beforeAll(async () => {
    deployment = await deploy({
      agents: [
        defineAgent({ name: "default", model: "gpt-test" }),
        defineAgent({ name: "hasty", model: "gpt-test", limits: { maxTurnMs: 100 } }),
      ],
      janitor: { roundMs: 200, patienceMs: 60_000 },
    });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  async function newConversation(): Promise<void> {
    ({ id: conversation } = await createConversation(deployment.database, "default", {}, []));
  }

  function say(input: string | unknown[], options: StartOptions = {}, more: object = {}) {
    return deployment.turnkeeper.turns.start({ input, conversation, ...more }, options);
  }

  const queue = (input: string | unknown[], more: object = {}): Promise<TurnHandle> =>
    say(input, { whenBusy: "queue" }, more);

  /** A turn that runs until its gate is opened. */
  async function holdConversation(answer = "First answer.") {
    await newConversation();
    const pause = gate(1);
    deployment.simulator.script(text(answer, { pauseAfter: pause }));
    const turn = await say("First");
    await pause.reached;
    return { turn, open: pause.open };
  }

  const after = (previous: TurnHandle, input: string) =>
    deployment.turnkeeper.turns.start({ input, previous_response_id: previous.id });

  test("a second turn is refused as busy, and the conversation is free once the first has ended", async () => {
    const { turn, open } = await holdConversation();
    await expect(say("Second")).rejects.toMatchObject({
      code: "conversation_busy",
      httpStatus: 409,
    });
    open();
    await ended(turn);
    deployment.simulator.script(text("Second answer."));
    expect(await ended(await say("Second"))).toMatchObject({ text: "Second answer." });
  });

  test("five turns that queue run in their order, each with the answers before it", async () => {
    const { turn, open } = await holdConversation();
    const { simulator } = deployment;
    const names = ["B", "C", "D", "E", "F"];
    simulator.script(...names.map((name) => text(`Answer ${name}.`)));
    const queued: TurnHandle[] = [];
    for (const name of names) queued.push(await queue(`Question ${name}`));
    open();
    await ended(turn);
    for (const [at, handle] of queued.entries()) {
      const result = await ended(handle);
      expect(result.text).toBe(`Answer ${names[at]}.`);
      expect(result.events.slice(0, 3).map((event) => event.type)).toEqual([
        "response.created",
        "response.queued",
        "response.in_progress",
      ]);
    }
    expect(saidTo(simulator.requests.at(-1))).toEqual([
      "First",
      "First answer.",
      ...names.flatMap((name) => [`Question ${name}`, `Answer ${name}.`]).slice(0, -1),
    ]);
  });

  test("a queued turn that is cancelled leaves no trace, and the next one gets its place", async () => {
    const { turn, open } = await holdConversation();
    const { simulator, database } = deployment;
    const cancelled = await queue("Never mind");
    const next = await queue("Next");
    await cancelled.cancel();
    expect(await ended(cancelled)).toMatchObject({ status: "cancelled", text: "" });
    simulator.script(text("Next answer."));
    open();
    await ended(turn);
    await ended(next);
    const history = await readHistory(database, "default", conversation);
    expect(history).toHaveLength(4);
    expect(outputText(history)).toBe("First answer.Next answer.");
  });

  test("a turn that fails hands the conversation on and leaves nothing behind", async () => {
    await newConversation();
    const { simulator, database } = deployment;
    const pause = Promise.withResolvers<void>();
    simulator.script(async () => {
      await pause.promise;
      return fault.quota();
    }, text("Next answer."));
    const failing = await say("First");
    const next = await queue("Next");
    pause.resolve();
    expect(await ended(failing)).toMatchObject({ status: "failed" });
    expect(await ended(next)).toMatchObject({ status: "completed", text: "Next answer." });
    expect(saidTo(simulator.requests.at(-1))).toEqual(["Next"]);
    expect(await readHistory(database, "default", conversation)).toHaveLength(2);
  });

  test("a queue that is full refuses the next turn", async () => {
    const { turn, open } = await holdConversation();
    const { simulator } = deployment;
    const waiting = Array.from({ length: maxQueuedTurns }, (_, at) => queue(`Wait ${at}`));
    const queued = await Promise.all(waiting);
    await expect(queue("One too many")).rejects.toMatchObject({ code: "queue_full" });
    await Promise.all(queued.map((handle) => handle.cancel()));
    open();
    await ended(turn);
    simulator.script(text("Free again."));
    expect(await ended(await say("Now"))).toMatchObject({ text: "Free again." });
  });

  test("a turn whose deadline passes in the queue ends as incomplete while the first still runs", async () => {
    const { turn, open } = await holdConversation();
    const late = await queue("Hurry", { model: "hasty" });
    const result = await ended(late);
    expect(result).toMatchObject({ status: "incomplete", text: "" });
    expect(result.response["incomplete_details"]).toEqual({ reason: "deadline" });
    open();
    expect(await ended(turn)).toMatchObject({ status: "completed" });
    const history = await readHistory(deployment.database, "default", conversation);
    expect(history).toHaveLength(2);
  });

  test("a queued turn that does not answer the calls it then meets fails, and the next is granted", async () => {
    await newConversation();
    const { simulator } = deployment;
    const pause = gate(1);
    simulator.script(
      calls([{ name: "ask_user", arguments: {}, callId: "call_1" }], { pauseAfter: pause }),
      text("Thanks."),
    );
    const asking = await say("Ask me", {}, { tools: [clientTool] });
    await pause.reached;
    const ignoring = await queue("Something else");
    const output = { type: "function_call_output", output: "yes" };
    const mistaken = await queue([
      { ...output, call_id: "call_1" },
      { ...output, call_id: "call_of_nobody" },
    ]);
    const answering = await queue([{ ...output, call_id: "call_1" }]);
    pause.open();
    expect(await ended(asking)).toMatchObject({ status: "completed" });
    const ignored = await ended(ignoring);
    expect(ignored).toMatchObject({
      status: "failed",
      turn: { failure: { code: "unanswered_calls" } },
    });
    expect(await ended(mistaken)).toMatchObject({
      status: "failed",
      turn: { failure: { class: "unanswered_calls", code: "unknown_call" } },
    });
    expect(await ended(answering)).toMatchObject({ status: "completed", text: "Thanks." });
  });

  test(
    "a turn started in Temporal that is passed over is told at once",
    async () => {
      await newConversation();
      const { simulator, taskQueue, turnkeeper } = deployment;
      const { client, connection } = connectLazily({ address: sharedTemporal().address });
      const pause = gate(1);
      simulator.script(
        calls([{ name: "ask_user", arguments: {}, callId: "call_1" }], { pauseAfter: pause }),
      );
      const asking = await say("Ask me", {}, { tools: [clientTool] });
      await pause.reached;
      const workflowId = newId("turn");
      const args = [{ request: { input: "Something else", conversation } }];
      const start = { taskQueue, workflowId, args };
      const workflow = await client.workflow.start("conversationTurn", start);
      const { turns } = turnkeeper;
      await expect.poll(async () => (await turns.read(workflowId)).status).toBe("queued");
      pause.open();
      await ended(asking);
      await expect(workflow.result()).rejects.toMatchObject({
        cause: { type: "unanswered_calls" },
      });
      await connection.close();
    },
    signalTimeoutMs,
  );

  test("the same key gives the same turn, also while it runs, waits, or was admitted twice at once", async () => {
    const { turn: holder, open } = await holdConversation();
    const { simulator } = deployment;
    const options = { idempotencyKey: "key-1", whenBusy: "queue" } as const;
    const [one, two] = await Promise.all([say("Again", options), say("Again", options)]);
    expect(two.id).toBe(one.id);
    expect(one.isNew).not.toBe(two.isNew);
    await expect(say("Other", options)).rejects.toMatchObject({ code: "idempotency_key_reused" });
    simulator.script(text("Once."));
    open();
    await ended(holder);
    await ended(one);
    const head = { input: "On", previous_response_id: one.id };
    simulator.script(text("Once more."));
    const twins = await Promise.all(
      Array.from({ length: 4 }, () =>
        deployment.turnkeeper.turns.start(head, { idempotencyKey: "key-2" }),
      ),
    );
    expect(new Set(twins.map((twin) => twin.id)).size).toBe(1);
    await ended(twins[0] as TurnHandle);
  });

  test("previous_response_id of the head continues its conversation, of an older turn forks it", async () => {
    await newConversation();
    const { simulator, database } = deployment;
    simulator.script(always(({ items }) => text(`Answer ${items.length}.`)));
    const first = await say("One");
    await ended(first);
    const second = await after(first, "Two");
    expect(second.conversationId).toBe(first.conversationId);
    await ended(second);
    const fork = await after(first, "Other two");
    expect(fork.conversationId).not.toBe(first.conversationId);
    await ended(fork);
    expect(saidTo(simulator.requests.at(-1))).toEqual(["One", "Answer 1.", "Other two"]);
    const third = await after(fork, "Three");
    expect(third.conversationId).toBe(fork.conversationId);
    await ended(third);
    const forkOfFork = await after(fork, "Other three");
    await ended(forkOfFork);
    expect(saidTo(simulator.requests.at(-1))).toEqual([
      "One",
      "Answer 1.",
      "Other two",
      "Answer 3.",
      "Other three",
    ]);
    const kept = await readHistory(database, "default", conversation);
    expect(outputText(kept)).toBe("Answer 1.Answer 3.");
  });

  test("previous_response_id of a running turn is busy, of a failed one or none is refused", async () => {
    const { turn, open } = await holdConversation();
    await expect(after(turn, "Two")).rejects.toMatchObject({ code: "conversation_busy" });
    const waiting = await queue("Wait");
    await expect(after(waiting, "Two")).rejects.toMatchObject({ code: "conversation_busy" });
    await waiting.cancel();
    await expect(after(waiting, "Two")).rejects.toMatchObject({
      code: "previous_response_unusable",
    });
    open();
    await ended(turn);
    deployment.simulator.script(fault.quota());
    const failed = await say("Fail");
    await ended(failed);
    await expect(after(failed, "Two")).rejects.toMatchObject({
      code: "previous_response_unusable",
    });
    const input = { input: "Two", previous_response_id: "resp_nobody" };
    await expect(deployment.turnkeeper.turns.start(input)).rejects.toMatchObject({
      code: "previous_response_not_found",
    });
    // What failed is not in the way: the head is the turn before it.
    deployment.simulator.script(text("Two."));
    const next = await after(turn, "Two");
    expect(next.conversationId).toBe(turn.conversationId);
    await ended(next);
  });
});
