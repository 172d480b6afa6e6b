import fc from "fast-check";
import { expect, test } from "vitest";
import { admitTurn } from "../src/store/admission.ts";
import { cancelTurn, findTurnsToStop } from "../src/store/cancels.ts";
import { createConversation, readHistory } from "../src/store/conversations.ts";
import type { Database } from "../src/store/database.ts";
import { clearCancelTimes, setCancelTime } from "../src/store/disconnects.ts";
import { endTurn } from "../src/store/endings.ts";
import { flushEvents } from "../src/store/eventLog.ts";
import { closeModelCall, dropModelCall } from "../src/store/modelCalls.ts";
import { storeStep } from "../src/store/steps.ts";
import { findTurnsToCancel } from "../src/store/upkeep.ts";
import { eventBody } from "../src/turn/events.ts";
import { failure } from "../src/turn/failures.ts";
import { outputText } from "../src/turn/items.ts";
import type { Item } from "../src/turn/items.ts";
import { maxQueuedTurns } from "../src/turn/limits.ts";
import type { Turn } from "../src/turn/turn.ts";
import { describeOnBoth, describeOnPostgres } from "./setup/storeDrivers.ts";
import {
  admission,
  admit,
  answer,
  claim,
  claimed,
  fence,
  functionCall,
  itemEvents,
  message,
  recordedEvents,
  reread,
  result,
  typesOf,
  usedCall,
} from "./setup/storeTurns.ts";

const manyActsTimeoutMs = 120_000;

const toolCall = (callId: string) => ({
  callId,
  name: "tool",
  arguments: "{}",
  outputIndex: 0,
  itemId: `mcp_${callId}`,
});

const historyOf = (database: Database, turn: Turn) =>
  readHistory(database, "default", turn.conversationId);

describeOnBoth("[12] a cancel", (open) => {
  test("is at once while nobody has claimed the turn, and keeps its input", async () => {
    const { database } = open;
    const turn = await admit(database);
    const outcome = await cancelTurn(database, turn);
    expect(outcome).toMatchObject({ outcome: "ended", status: "cancelled" });
    expect(await historyOf(database, turn)).toEqual(turn.request.input);
    const events = await recordedEvents(database, turn);
    expect(events.at(-1)).toMatchObject({ response: { status: "cancelled", output: [] } });
  });

  test("is only asked for once somebody has: the flag comes with the next claim", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    expect(await cancelTurn(database, turn)).toEqual({ outcome: "requested" });
    const { cancelRequestedAt } = await reread(database, turn);
    expect(cancelRequestedAt).not.toBeNull();
    expect(await cancelTurn(database, turn)).toEqual({ outcome: "requested" });
    expect((await reread(database, turn)).cancelRequestedAt).toEqual(cancelRequestedAt);
    const next = await claimed(database, fence(turn, { attempt: 2 }));
    expect(next.turn.cancelRequestedAt).toEqual(cancelRequestedAt);
  });

  test("is at once between two steps: the tools that have not begun never do", async () => {
    const { database } = open;
    const turn = await admit(database);
    const { modelCallId } = await claimed(database, fence(turn));
    const call = toolCall("a");
    const asked = result([functionCall("a", "tool")], {
      verdict: { next: "tools", tools: ["tool"], thenEnd: false },
      calls: [call],
    });
    await storeStep(database, turn, fence(turn), asked, usedCall(modelCallId));
    expect(await cancelTurn(database, turn)).toMatchObject({ status: "cancelled" });
    const tool = await claim(database, fence(turn, { step: 2 }), { kind: "tool" });
    expect(tool).toEqual({ outcome: "recorded", verdict: { next: "end", status: "cancelled" } });
  });

  test("is at once while a step waits for its next attempt, and only asked for during one", async () => {
    const { database } = open;
    const turn = await admit(database);
    const { modelCallId } = await claimed(database, fence(turn));
    const failed = { ...usedCall(modelCallId), outcome: "wasted", tokens: null } as const;
    await closeModelCall(database, { ...failed, failure: failure("rate_limited") });
    const second = await admit(database);
    await claimed(database, fence(second));
    await claimed(database, fence(second, { attempt: 2 }));
    expect(await cancelTurn(database, second)).toEqual({ outcome: "requested" });
    expect(await cancelTurn(database, turn)).toMatchObject({ status: "cancelled" });
    const retry = await claim(database, fence(turn, { attempt: 2 }));
    expect(retry).toMatchObject({ outcome: "recorded", verdict: { status: "cancelled" } });
  });

  test("is only asked for while a tool runs", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn), { kind: "tool" });
    expect(await cancelTurn(database, turn)).toEqual({ outcome: "requested" });
  });

  test("keeps of two attempts the one that has shown something last, also one without a call", async () => {
    const { database } = open;
    const turn = await admit(database);
    const said = async (attempt: number, index: number, text: string) => {
      const bodies = itemEvents(message(text), index).map(eventBody);
      const by = fence(turn, { attempt });
      const nextOutputIndex = index + 1;
      await flushEvents(database, [{ ...by, flush: 1, bodies, nextOutputIndex, place: null }]);
    };
    await claimed(database, fence(turn));
    await said(1, 0, "The model's half of");
    const { modelCallId, firstOutputIndex } = await claimed(database, fence(turn, { attempt: 2 }));
    expect(firstOutputIndex).toBe(1);
    await said(2, 1, "Sorry.");
    await dropModelCall(database, modelCallId ?? "");
    await endTurn(database, turn, { status: "cancelled" });
    expect(outputText(((await reread(database, turn)).output ?? []) as Item[])).toBe("Sorry.");
  });

  test.each([["cancelled"], ["failed"]] as const)(
    "is not held up by a message without content: %s",
    async (status) => {
      const { database } = open;
      const turn = await admit(database);
      await claimed(database, fence(turn));
      const odd = [{}, { content: null }, { content: "Hi" }, { content: [null, { text: 1 }] }];
      const items = odd.map((each, at) => ({ type: "message", id: `msg_${at}`, ...each }));
      const bodies = items.flatMap((item, at) => itemEvents(item, at).map(eventBody));
      await flushEvents(database, [
        { ...fence(turn), flush: 1, bodies, nextOutputIndex: odd.length, place: null },
      ]);
      const ending = status === "failed" ? { status, failure: failure("internal") } : { status };
      expect((await endTurn(database, turn, ending)).outcome).toBe("ended");
    },
  );

  test("loses against a complete answer that was stored first", async () => {
    const { database } = open;
    const turn = await admit(database);
    await answer(database, turn);
    expect(await cancelTurn(database, turn)).toMatchObject({ status: "completed" });
  });
});

describeOnBoth("a turn that is to end with its followers", (open) => {
  const graceMs = 5_000;

  async function startFollowed(database: Database): Promise<Turn> {
    const turn = await admit(database, {}, { disconnectGraceMs: graceMs });
    await claimed(database, fence(turn));
    await setCancelTime(database, "default", turn.id);
    return turn;
  }

  const expire = (database: Database, turn: Turn) =>
    database.query("UPDATE turns SET cancel_at = now() WHERE id = $1", [turn.id]);

  const isDue = async (database: Database, turn: Turn) =>
    (await findTurnsToCancel(database, 3_600_000, 100)).some(({ id }) => id === turn.id);

  test("is stopped by its worker, and found by the janitor, once their time is over", async () => {
    const { database } = open;
    const turn = await startFollowed(database);
    expect(await findTurnsToStop(database, [turn.id])).toEqual([]);
    expect(await isDue(database, turn)).toBe(false);
    await expire(database, turn);
    expect(await isDue(database, turn)).toBe(true);
    expect(await findTurnsToStop(database, [turn.id])).toEqual([turn.id]);
    // The next step reads it as any other cancel.
    expect((await reread(database, turn)).cancelRequestedAt).not.toBeNull();
  });

  test("goes on when somebody follows it again", async () => {
    const { database } = open;
    const turn = await startFollowed(database);
    await expire(database, turn);
    await clearCancelTimes(database, [turn.id]);
    expect(await findTurnsToStop(database, [turn.id])).toEqual([]);
    expect(await isDue(database, turn)).toBe(false);
  });

  test("[1] is left as it is once it has ended, and only by its own project", async () => {
    const { database } = open;
    const turn = await startFollowed(database);
    await clearCancelTimes(database, [turn.id]);
    await setCancelTime(database, "another", turn.id);
    await endTurn(database, turn, { status: "cancelled" });
    await setCancelTime(database, "default", turn.id);
    const rows = await database.query("SELECT cancel_at FROM turns WHERE id = $1", [turn.id]);
    expect(rows).toEqual([{ cancel_at: null }]);
    // Whoever still is at a step of it has to stop.
    expect(await findTurnsToStop(database, [turn.id])).toEqual([turn.id]);
  });

  test("without the wish is never given a time", async () => {
    const { database } = open;
    const turn = await admit(database);
    await setCancelTime(database, "default", turn.id);
    expect(await isDue(database, turn)).toBe(false);
  });
});

describeOnBoth("[2] a turn that interrupts", (open) => {
  const interrupt = { whenBusy: "interrupt" } as const;

  async function hold(database: Database): Promise<{ holder: Turn; conversation: string }> {
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const holder = await admit(database, { conversation, input: "First" });
    await claimed(database, fence(holder));
    return { holder, conversation };
  }

  test("of a free conversation is like any other", async () => {
    const { database } = open;
    const turn = await admit(database, {}, interrupt);
    expect(turn.status).toBe("admitted");
  });

  test("asks the one that is being worked on to end, and is granted before those that queued", async () => {
    const { database } = open;
    const { holder, conversation } = await hold(database);
    await admit(database, { conversation }, { whenBusy: "queue" });
    const { turn, interrupted } = await admitTurn(
      database,
      admission({ conversation, input: "Second" }, interrupt),
    );
    expect(turn.status).toBe("queued");
    expect(interrupted).toEqual({ turnId: holder.id, cancelled: { outcome: "requested" } });
    expect((await reread(database, holder)).cancelRequestedAt).not.toBeNull();
    const ended = await endTurn(database, holder, { status: "cancelled" });
    expect(ended.granted).toBe(turn.id);
  });

  test("ends one that nobody is at in its own admission, and holds the conversation", async () => {
    const { database } = open;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const holder = await admit(database, { conversation, input: "First" });
    const { turn, interrupted } = await admitTurn(
      database,
      admission({ conversation, input: "Second" }, interrupt),
    );
    expect(turn.status).toBe("admitted");
    expect(interrupted?.cancelled).toMatchObject({ status: "cancelled", granted: turn.id });
    expect((await reread(database, holder)).status).toBe("cancelled");
    expect(await historyOf(database, turn)).toEqual(holder.request.input);
    const types = typesOf(await recordedEvents(database, turn));
    expect(types).toEqual(["response.created", "response.queued"]);
  });

  test("need not answer the calls that the other one has left, but cannot answer others", async () => {
    const { database } = open;
    const { holder, conversation } = await hold(database);
    const turn = await admit(database, { conversation, input: "Second" }, interrupt);
    const finished = {
      fence: fence(holder),
      result: result([functionCall("call_1")]),
      modelCall: null,
    };
    // A complete answer wins over the cancel; nobody will answer its call now.
    const ended = await endTurn(
      database,
      holder,
      { status: "completed" },
      {
        lastStep: finished,
      },
    );
    expect(ended.granted).toBe(turn.id);
    await claimed(database, fence(turn));
    const stray = { type: "function_call_output", call_id: "call_of_nobody", output: "1" };
    const mistaken = await admit(database, { conversation, input: [stray] }, interrupt);
    await endTurn(database, turn, { status: "cancelled" });
    expect(await reread(database, mistaken)).toMatchObject({
      status: "failed",
      failure: { code: "unknown_call" },
    });
  });

  test("[4] once more with the same key interrupts nothing more", async () => {
    const { database } = open;
    const { conversation } = await hold(database);
    const again = admission(
      { conversation, input: "Second" },
      { ...interrupt, idempotencyKey: "k" },
    );
    const first = await admitTurn(database, again);
    const second = await admitTurn(database, { ...again, turnId: "resp_other" });
    expect(second).toMatchObject({ isNew: false, interrupted: null });
    expect(second.turn.id).toBe(first.turn.id);
  });

  test("[13] is refused by a queue that is full, and then the other one goes on", async () => {
    const { database } = open;
    const { holder, conversation } = await hold(database);
    for (let at = 0; at < maxQueuedTurns; at++) {
      await admit(database, { conversation }, { whenBusy: "queue" });
    }
    await expect(admit(database, { conversation }, interrupt)).rejects.toMatchObject({
      code: "queue_full",
    });
    expect((await reread(database, holder)).cancelRequestedAt).toBeNull();
  });
});

/** What happens in one conversation: somebody speaks, or the turn that holds it gets on. */
type Act =
  | { do: "say"; mode: "queue" | "interrupt" }
  | { do: "claim" }
  | { do: "end"; how: "completed" | "failed" | "cancelled" }
  | { do: "cancel" };

const act = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("say" as const),
      mode: fc.constantFrom("queue" as const, "interrupt" as const),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("claim" as const) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("end" as const),
      how: fc.constantFrom("completed" as const, "failed" as const, "cancelled" as const),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("cancel" as const) }) },
);

interface Said {
  id: string;
  text: string;
  interrupts: boolean;
}

/** What should be the state of the conversation, by the rules alone. */
class ConversationModel {
  holder: (Said & { isClaimed: boolean; isCancelled: boolean }) | null = null;
  queue: Said[] = [];
  history: string[] = [];

  say(said: Said): void {
    if (this.holder === null) {
      this.holder = { ...said, interrupts: false, isClaimed: false, isCancelled: false };
      return;
    }
    const firstThatWaits = this.queue.findIndex((each) => !each.interrupts);
    const place = said.interrupts && firstThatWaits !== -1 ? firstThatWaits : this.queue.length;
    this.queue.splice(place, 0, said);
    if (said.interrupts) this.cancel();
  }

  cancel(): void {
    if (this.holder === null) return;
    if (this.holder.isClaimed) this.holder.isCancelled = true;
    else this.end("cancelled");
  }

  end(how: string): void {
    if (this.holder !== null && how !== "failed") this.history.push(this.holder.text);
    this.holder = null;
    for (;;) {
      const next = this.queue.shift();
      if (next === undefined) return;
      // The newest message runs; what was said before it stays in the conversation.
      if (this.queue.some((each) => each.interrupts)) this.history.push(next.text);
      else {
        this.holder = { ...next, isClaimed: false, isCancelled: false };
        return;
      }
    }
  }
}

describeOnPostgres("[2][12] turns that queue, interrupt, end and are cancelled", (open) => {
  async function apply(
    database: Database,
    conversation: string,
    model: ConversationModel,
    each: Act,
    text: string,
  ): Promise<void> {
    const { holder } = model;
    if (each.do === "say") {
      const { mode: whenBusy } = each;
      const { id } = await admit(database, { conversation, input: text }, { whenBusy });
      return model.say({ id, text, interrupts: whenBusy === "interrupt" });
    }
    if (holder === null) return;
    const turn = { id: holder.id, conversationId: conversation };
    if (each.do === "claim") {
      await claimed(database, fence(turn));
      holder.isClaimed = true;
    } else if (each.do === "cancel") {
      await cancelTurn(database, turn);
      model.cancel();
    } else {
      const { how } = each;
      const ending = how === "failed" ? { failure: failure("internal") } : {};
      await endTurn(database, turn, { status: how, ...ending });
      model.end(how);
    }
  }

  /** The texts of what users said, in the conversation's order. */
  const saidIn = async (database: Database, conversation: string): Promise<string[]> =>
    (await readHistory(database, "default", conversation)).map(
      (item) => (item["content"] as { text: string }[])[0]?.text ?? "",
    );

  test(
    "follow the rules in whatever order it happens, and what was said stays said",
    async () => {
      const { database } = open;
      await fc.assert(
        fc.asyncProperty(fc.array(act, { minLength: 6, maxLength: 20 }), async (acts) => {
          const { id: conversation } = await createConversation(database, "default", {}, []);
          const model = new ConversationModel();
          for (const [at, each] of acts.entries()) {
            if (each.do === "claim" && model.holder?.isClaimed) continue;
            await apply(database, conversation, model, each, `Message ${at}`);
            const [row] = await database.query<{ holder_turn_id: string | null }>(
              "SELECT holder_turn_id FROM conversations WHERE id = $1",
              [conversation],
            );
            expect(row?.holder_turn_id).toBe(model.holder?.id ?? null);
            expect(await saidIn(database, conversation)).toEqual(model.history);
            if (model.holder === null) continue;
            const holder = await reread(database, model.holder);
            expect(holder.cancelRequestedAt !== null).toBe(model.holder.isCancelled);
          }
        }),
        { numRuns: 40 },
      );
    },
    manyActsTimeoutMs,
  );
});
