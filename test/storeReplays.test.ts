import { expect, test } from "vitest";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { admitReplay, findEffect } from "../src/store/replays.ts";
import { storeStep } from "../src/store/steps.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { failure } from "../src/turn/failures.ts";
import { newId } from "../src/turn/ids.ts";
import { prepareReplay } from "../src/turn/replay.ts";
import type { ReplayOptions } from "../src/turn/replay.ts";
import type { Turn } from "../src/turn/turn.ts";
import { describeOnBoth } from "./setup/storeDrivers.ts";
import {
  addProject,
  admit,
  answer,
  claim,
  claimed,
  fence,
  itemEvents,
  message,
  recordedEvents,
  reread,
  result,
  typesOf,
  usedCall,
} from "./setup/storeTurns.ts";

const agent = defineAgent({ name: "default", model: "gpt-test" });

async function replay(
  database: Database,
  original: Turn,
  options: ReplayOptions = {},
  project = "default",
): Promise<Turn> {
  const { plan, ...prepared } = prepareReplay(original, options, agent, [agent]);
  const admission = {
    ...prepared,
    turnId: newId("turn"),
    project,
    idempotencyKey: null,
    apiKeyId: null,
    whenBusy: "reject" as const,
    disconnectGraceMs: null,
  };
  return (await admitReplay(database, admission, plan)).turn;
}

/** Says something, calls one tool, whose outcome is `sum`, and fails. */
async function failAfterTool(database: Database, turn: Turn): Promise<Turn> {
  const { modelCallId } = await claimed(database, fence(turn));
  const call = { callId: "a", name: "add", arguments: "{}", outputIndex: 1, itemId: "mcp_a" };
  const asked = result([message("Adding.")], {
    verdict: { next: "tools", tools: ["add"], thenEnd: false },
    calls: [call],
    nextOutputIndex: 2,
  });
  await storeStep(database, turn, fence(turn), asked, usedCall(modelCallId));
  const tool = fence(turn, { step: 2 });
  await claimed(database, tool, { kind: "tool" });
  const output = { type: "function_call_output", id: "fco_a", call_id: "a", output: "sum" };
  const item = { type: "mcp_call", id: "mcp_a", arguments: "{}", output: "sum", error: null };
  const done = result([output], {
    verdict: { next: "model" },
    output: [{ index: 1, item }],
    outcome: "ok",
    events: itemEvents(item, 1),
    nextOutputIndex: 0,
  });
  await storeStep(database, turn, tool, done, null);
  await claimed(database, fence(turn, { step: 3 }));
  const ending = { status: "failed", failure: failure("quota_exhausted") } as const;
  await endTurn(database, turn, ending);
  return reread(database, turn);
}

describeOnBoth("a replay on record", (open) => {
  test("has the finished steps of its turn, and shows what they have produced at its start", async () => {
    const { database } = open;
    const original = await failAfterTool(database, await admit(database));
    const turn = await replay(database, original);
    expect(turn).toMatchObject({ status: "admitted", conversationId: original.conversationId });
    const recorded = { outcome: "recorded", verdict: { next: "tools", tools: ["add"] } };
    expect(await claim(database, fence(turn))).toMatchObject(recorded);
    const step = fence(turn, { step: 2 });
    expect(await claim(database, step, { kind: "tool" })).toMatchObject({ outcome: "recorded" });
    const next = await claimed(database, fence(turn, { step: 3 }));
    expect(next).toMatchObject({ firstOutputIndex: 2, wasRunning: false });
    const events = await recordedEvents(database, turn);
    expect(typesOf(events).slice(0, 3)).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
    ]);
    expect(typesOf(events).filter((type) => type === "response.in_progress")).toHaveLength(1);
    const shown = events.filter((event) => event.type === "response.output_item.done");
    expect(shown).toMatchObject([
      { output_index: 0, item: { type: "message" } },
      { output_index: 1, item: { type: "mcp_call", output: "sum" } },
    ]);
    expect(shown.map((event) => (event["item"] as { id: string }).id)).not.toContain("mcp_a");
  });

  test("has for its base what was there when its turn was granted, not when it was queued", async () => {
    const { database } = open;
    const first = await admit(database);
    const conversation = first.conversationId;
    const queued = await admit(database, { conversation }, { whenBusy: "queue" });
    await answer(database, first);
    const original = await failAfterTool(database, await reread(database, queued));
    expect((await replay(database, original, { fork: true })).conversationId).not.toBe(
      conversation,
    );
    expect((await replay(database, original)).conversationId).toBe(conversation);
    const [base] = await database.query<{ base_position: number }>(
      "SELECT base_position FROM turns WHERE id = $1",
      [queued.id],
    );
    expect(base).toEqual({ base_position: 2 });
  });

  test("is refused while another turn holds the conversation that it would go on in", async () => {
    const { database } = open;
    const original = await failAfterTool(database, await admit(database));
    await admit(database, { conversation: original.conversationId });
    await expect(replay(database, original)).rejects.toMatchObject({ code: "conversation_busy" });
  });

  test("[14] finds no turn and no effect of another project", async () => {
    const { database } = open;
    await addProject(database, "other");
    const original = await failAfterTool(database, await admit(database));
    const foreign = replay(database, original, {}, "other");
    await expect(foreign).rejects.toMatchObject({ code: "response_not_found" });
    const [step] = await database.query<{ effect_key: string }>(
      "SELECT effect_key FROM steps WHERE turn_id = $1 AND number = 2",
      [original.id],
    );
    const key = step?.effect_key ?? "";
    const own = await admit(database);
    const others = await admit(database, {}, { project: "other" });
    expect(await findEffect(database, own, key)).toEqual({ outcome: "ok", output: "sum" });
    expect(await findEffect(database, others, key)).toBeNull();
    expect(await findEffect(database, original, key)).toBeNull();
  });
});
