import { expect, test } from "vitest";
import { costSubjects, readCosts, readTotalCost } from "../src/store/costs.ts";
import type { CostSubject } from "../src/store/costs.ts";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import { flushEvents } from "../src/store/eventLog.ts";
import { closeModelCall, readModelCalls } from "../src/store/modelCalls.ts";
import type { ModelCallEnd, ModelCallRecord } from "../src/store/modelCalls.ts";
import { giveUpCall } from "../src/store/wastedCalls.ts";
import { eventBody } from "../src/turn/events.ts";
import { failure } from "../src/turn/failures.ts";
import type { FailureClass } from "../src/turn/failures.ts";
import type { Turn } from "../src/turn/turn.ts";
import { describeOnBoth } from "./setup/storeDrivers.ts";
import {
  addProject,
  admit,
  answer,
  claimed,
  fence,
  itemEvents,
  message,
  usedCall,
} from "./setup/storeTurns.ts";

const eightTokens = "a text of 32 bytes, to be exact.";

async function callsOf(database: Database, turn: Turn): Promise<ModelCallRecord[]> {
  return readModelCalls(database, turn.project, turn.id);
}

/** A turn whose first call has put half an answer on record: eight tokens of it. */
async function halfAnswered(
  database: Database,
  model = "gpt-6.1-terra",
): Promise<Turn & { callId: string }> {
  const turn = await admit(database, { input: "x".repeat(4_000), model });
  const { modelCallId } = await claimed(database, fence(turn));
  const item = { ...message(""), content: [] };
  const place = { item_id: item.id, output_index: 0, content_index: 0 };
  const events = [
    { type: "response.output_item.added", output_index: 0, item },
    { type: "response.output_text.delta", ...place, delta: eightTokens },
  ];
  await flushEvents(database, [
    { ...fence(turn), flush: 1, bodies: events.map(eventBody), nextOutputIndex: 1, place: null },
  ]);
  return { ...turn, callId: modelCallId ?? "" };
}

/** The role of the message is read, too. */
const roughly = (tokens: number) => ({
  asymmetricMatch: (value: unknown) => Number(value) >= tokens && Number(value) <= tokens + 10,
});

const estimated = {
  outcome: "wasted",
  certainty: "estimated",
  tokens: { inputTokens: roughly(1_000), cachedTokens: 0, outputTokens: 8 },
  costUsd: expect.closeTo(0.001_05, 4) as number,
};

describeOnBoth("[7] a call whose usage never arrived", (open) => {
  test("is estimated from what is on record when another attempt takes over", async () => {
    const { database } = open;
    const turn = await halfAnswered(database);
    await claimed(database, fence(turn, { attempt: 2 }));
    expect(await callsOf(database, turn)).toMatchObject([estimated, { outcome: "open" }]);
  });

  test("is estimated from its own part of the record alone", async () => {
    const { database } = open;
    const turn = await halfAnswered(database);
    const second = await claimed(database, fence(turn, { attempt: 2 }));
    const events = itemEvents(message(eightTokens.repeat(10)), second.firstOutputIndex);
    const by = fence(turn, { attempt: 2 });
    await flushEvents(database, [
      { ...by, flush: 1, bodies: events.map(eventBody), nextOutputIndex: 2, place: null },
    ]);
    await claimed(database, fence(turn, { attempt: 3 }));
    expect(await callsOf(database, turn)).toMatchObject([
      estimated,
      { certainty: "estimated", tokens: { outputTokens: 80 } },
      { outcome: "open" },
    ]);
  });

  test("is estimated when its turn is ended by somebody else", async () => {
    const { database } = open;
    const turn = await halfAnswered(database);
    await endTurn(database, turn, { status: "cancelled" });
    expect(await callsOf(database, turn)).toMatchObject([estimated]);
  });

  test("is known to the token when its owner can still say so", async () => {
    const { database } = open;
    const turn = await halfAnswered(database);
    await endTurn(database, turn, { status: "cancelled" });
    const [call] = await callsOf(database, turn);
    expect(call?.certainty).toBe("estimated");
    await closeModelCall(database, usedCall(turn.callId));
    expect(await callsOf(database, turn)).toMatchObject([
      { outcome: "wasted", certainty: "exact", tokens: { inputTokens: 10 }, costUsd: 0.5 },
    ]);
  });

  test("stays unknown when nothing of an answer is on record", async () => {
    const { database } = open;
    const turn = await admit(database);
    await claimed(database, fence(turn));
    await endTurn(database, turn, { status: "cancelled" });
    expect(await callsOf(database, turn)).toMatchObject([
      { outcome: "wasted", certainty: "unknown", tokens: null, costUsd: null },
    ]);
  });

  test("has tokens and no cost when nobody knows the model's price", async () => {
    const { database } = open;
    const turn = await halfAnswered(database, "my-own-model");
    await claimed(database, fence(turn, { attempt: 2 }));
    const [wasted] = await callsOf(database, turn);
    expect(wasted).toMatchObject({ certainty: "estimated", costUsd: null });
    expect(wasted?.tokens).not.toBeNull();
  });

  const giveUp = async (database: Database, over: Partial<ModelCallEnd>, isWhole = true) => {
    const turn = await halfAnswered(database);
    const end: ModelCallEnd = {
      id: turn.callId,
      outcome: "wasted",
      responseId: null,
      requestId: null,
      tokens: null,
      isEstimated: false,
      costUsd: null,
      failure: null,
      ...over,
    };
    const call = { end, isWhole, inputTokens: () => 1_000 };
    await giveUpCall(database, turn, call);
    // Once more, as after a commit whose answer was lost.
    await giveUpCall(database, turn, call);
    return (await callsOf(database, turn))[0];
  };

  test("and whose owner gives it up is estimated if an answer had begun", async () => {
    const { database } = open;
    expect(await giveUp(database, { responseId: "resp_1" })).toMatchObject(estimated);
    expect(await giveUp(database, { requestId: "req_1" })).toMatchObject(estimated);
    const unsaid = { certainty: "unknown", tokens: null };
    expect(await giveUp(database, {})).toMatchObject(unsaid);
    expect(await giveUp(database, { failure: failure("transport") })).toMatchObject(unsaid);
    const nothing = { certainty: "estimated", tokens: { inputTokens: 0, outputTokens: 0 } };
    expect(await giveUp(database, {}, false)).toMatchObject(nothing);
    expect(await giveUp(database, { failure: failure("transport") }, false)).toMatchObject(nothing);
  });

  test("and whose owner has been replaced is not estimated by what the next call wrote", async () => {
    const { database } = open;
    const turn = await admit(database);
    const { modelCallId } = await claimed(database, fence(turn));
    const by = fence(turn, { attempt: 2 });
    await claimed(database, by);
    const bodies = itemEvents(message(eightTokens), 0).map(eventBody);
    await flushEvents(database, [{ ...by, flush: 1, bodies, nextOutputIndex: 1, place: null }]);
    const end = {
      ...usedCall(modelCallId),
      outcome: "wasted",
      tokens: null,
      costUsd: null,
    } as const;
    await giveUpCall(database, turn, { end, isWhole: true, inputTokens: () => 1_000 });
    expect(await callsOf(database, turn)).toMatchObject([
      { certainty: "estimated", tokens: { inputTokens: 1_000, outputTokens: 0 } },
      { outcome: "open", certainty: "unknown" },
    ]);
  });

  test.each<FailureClass>(["rate_limited", "quota_exhausted", "overloaded", "invalid_request"])(
    "because the provider refused it (%s) is estimated as nothing, and says why",
    async (failureClass) => {
      const message = `No.\0 ${failureClass} \ud800`;
      const refused = failure(failureClass, message, { code: "no" });
      const call = await giveUp(open.database, { failure: refused, requestId: "req_1" });
      expect(call).toMatchObject({
        certainty: "estimated",
        tokens: { inputTokens: 0, outputTokens: 0 },
        costUsd: 0,
        failureClass,
        failureCode: "no",
        requestId: "req_1",
      });
      expect(call?.failureMessage).toContain(failureClass);
    },
  );
});

const keyColumns: Record<CostSubject, string> = {
  turn: "turn_id",
  conversation: "conversation_id",
  agent: "agent",
  user: "user_id",
  model: "model",
  day: "day",
};

const everything = { order: "asc", limit: 1_000 } as const;

describeOnBoth("the ledger's views", (open) => {
  test("give a turn its calls, its tokens and its cost, wasted ones apart", async () => {
    const { database } = open;
    const turn = await admit(database, { safety_identifier: "user-1" });
    const wasted = await claimed(database, fence(turn));
    await closeModelCall(database, {
      ...usedCall(wasted.modelCallId, 100, 50),
      outcome: "wasted",
      costUsd: 2,
    });
    const { modelCallId } = await claimed(database, fence(turn, { attempt: 2 }));
    await closeModelCall(database, usedCall(modelCallId, 10, 5));
    const [row] = await database.query("SELECT * FROM cost_by_turn WHERE turn_id = $1", [turn.id]);
    expect(row).toEqual({
      project_id: "default",
      turn_id: turn.id,
      turns: 1,
      calls: 2,
      calls_used: 1,
      calls_wasted: 1,
      calls_exact: 2,
      calls_estimated: 0,
      calls_unknown: 0,
      calls_unpriced: 0,
      input_tokens: 110,
      cached_tokens: 4,
      cache_write_tokens: 6,
      output_tokens: 55,
      reasoning_tokens: 2,
      cost_usd: "2.5",
      wasted_cost_usd: "2",
    });
  });

  test("count calls without a known cost instead of taking them for free", async () => {
    const { database } = open;
    const turn = await admit(database);
    const { modelCallId } = await claimed(database, fence(turn));
    await closeModelCall(database, { ...usedCall(modelCallId), costUsd: null });
    await claimed(database, fence(turn, { step: 2 }));
    const [row] = await database.query("SELECT * FROM cost_by_turn WHERE turn_id = $1", [turn.id]);
    expect(row).toMatchObject({ calls: 2, calls_exact: 1, calls_unknown: 1, calls_unpriced: 1 });
  });

  test.each(costSubjects)("by %s say the same as the gateway's query", async (by) => {
    const { database } = open;
    await addProject(database, "elsewhere");
    for (const user of ["user-1", "user-2"]) {
      await answer(database, await admit(database, { user, model: `model-of-${user}` }));
      const elsewhere = await admit(database, { user }, { project: "elsewhere" });
      await answer(database, elsewhere);
    }
    for (const project of ["default", "elsewhere"]) {
      const costs = await readCosts(database, project, { by, ...everything });
      const view = await database.query<Record<string, unknown>>(
        `SELECT * FROM cost_by_${by} WHERE project_id = $1`,
        [project],
      );
      const rows = view.map(({ project_id: seenBy, [keyColumns[by]]: key, ...figures }) => ({
        project: seenBy,
        key,
        ...figures,
        cost_usd: Number(figures["cost_usd"]),
        wasted_cost_usd: Number(figures["wasted_cost_usd"]),
      }));
      const byKey = (a: { key: unknown }, b: { key: unknown }) =>
        String(a.key).localeCompare(String(b.key));
      const expected = costs.map((cost) => ({ project, ...cost }));
      expect(rows.sort(byKey)).toEqual(expected.sort(byKey));
      const total = await readTotalCost(database, project, {});
      expect(costs.reduce((sum, each) => sum + each.calls, 0)).toBe(total.calls);
      expect(costs.reduce((sum, each) => sum + each.cost_usd, 0)).toBeCloseTo(total.cost_usd);
    }
  });

  test("know the user by either name of the parameter, whatever characters it has", async () => {
    const { database } = open;
    const project = "users";
    await addProject(database, project);
    const users = [
      { user: "old" },
      { safety_identifier: "new", user: "old" },
      { user: `\0${"x".repeat(300)}\ud800` },
      {},
    ];
    for (const user of users) await answer(database, await admit(database, user, { project }));
    const costs = await readCosts(database, project, { by: "user", ...everything });
    const keys = costs.map((cost) => cost.key);
    expect(keys).toContain("old");
    expect(keys).toContain("new");
    expect(keys).toContain(null);
    expect(keys).toContain(`\u{fffd}${"x".repeat(255)}`);
  });

  test("add up a range of time", async () => {
    const { database } = open;
    const project = "ranges";
    await addProject(database, project);
    for (const day of ["2026-01-01", "2026-01-02", "2026-01-03"]) {
      const turn = await admit(database, {}, { project });
      await answer(database, turn);
      const at = `${day}T12:00:00Z`;
      await database.query("UPDATE model_calls SET started_at = $1 WHERE turn_id = $2", [
        at,
        turn.id,
      ]);
    }
    const range = { from: new Date("2026-01-02T00:00:00Z"), to: new Date("2026-01-03T00:00:00Z") };
    const days = { by: "day", order: "desc", limit: 10 } as const;
    expect(await readCosts(database, project, { ...days, ...range })).toMatchObject([
      { key: "2026-01-02", calls: 1, cost_usd: 0.5 },
    ]);
    expect(await readTotalCost(database, project, range)).toMatchObject({ calls: 1 });
    const all = await readCosts(database, project, days);
    expect(all.map((each) => each.key)).toEqual(["2026-01-03", "2026-01-02", "2026-01-01"]);
  });
});
