import { expect } from "vitest";
import { admitTurn } from "../../src/store/admission.ts";
import type { Admission } from "../../src/store/admission.ts";
import { createApiKey } from "../../src/store/apiKeys.ts";
import type { Database } from "../../src/store/database.ts";
import { endTurn } from "../../src/store/endings.ts";
import type { Ended, Ending } from "../../src/store/endings.ts";
import { flushEvents, readEventsAfter } from "../../src/store/eventLog.ts";
import type { EventKey, FlushOutcome } from "../../src/store/eventLog.ts";
import type { ModelCallEnd } from "../../src/store/modelCalls.ts";
import { claimStep } from "../../src/store/claims.ts";
import type { Claim, CurrentRun } from "../../src/store/claims.ts";
import type { Fence } from "../../src/store/fence.ts";
import type { StepResult } from "../../src/store/steps.ts";
import { readTurnOfWorkflow } from "../../src/store/turns.ts";
import { defineAgent } from "../../src/turn/agent.ts";
import { eventBody, parseEvent } from "../../src/turn/events.ts";
import type { NumberedEvent, TurnEvent } from "../../src/turn/events.ts";
import { newId } from "../../src/turn/ids.ts";
import type { Item } from "../../src/turn/items.ts";
import { prepareTurn } from "../../src/turn/prepare.ts";
import type { ResponseRequest } from "../../src/turn/request.ts";
import type { Turn } from "../../src/turn/turn.ts";

const agents = [defineAgent({ name: "default", model: "gpt-test" })];

/** What admits a turn that asks `Hi`, or whatever `request` asks. */
export function admission(
  request: ResponseRequest = {},
  options: Partial<Admission> = {},
): Admission {
  return {
    ...prepareTurn({ input: "Hi", ...request }, agents),
    turnId: newId("turn"),
    project: "default",
    idempotencyKey: null,
    apiKeyId: null,
    whenBusy: "reject",
    disconnectGraceMs: null,
    ...options,
  };
}

export async function admit(
  database: Database,
  request: ResponseRequest = {},
  options: Partial<Admission> = {},
): Promise<Turn> {
  const { turn } = await admitTurn(database, admission(request, options));
  return turn;
}

export async function addProject(database: Database, project: string): Promise<void> {
  await createApiKey(database, project, "test");
}

export function fence(turn: { id: string }, over: Partial<Fence> = {}): Fence {
  return { turnId: turn.id, step: 1, runId: "run-1", attempt: 1, ...over };
}

/** For claims that must not need to ask which run is current. */
export const notAsked: CurrentRun = () => {
  throw new Error("Nobody should have asked which run is current.");
};

export function claim(
  database: Database,
  by: Fence,
  options: { kind?: "model" | "tool"; token?: string; currentRun?: CurrentRun } = {},
): Promise<Claim> {
  const { kind = "model", token = crypto.randomUUID(), currentRun = notAsked } = options;
  return claimStep(database, { fence: by, token, kind }, currentRun);
}

export type Claimed = Extract<Claim, { outcome: "claimed" }>;

export async function claimed(...args: Parameters<typeof claim>): Promise<Claimed> {
  const outcome = await claim(...args);
  expect(outcome.outcome).toBe("claimed");
  return outcome as Claimed;
}

export function message(text: string): Item {
  const content = [{ type: "output_text", text, annotations: [], logprobs: [] }];
  return { type: "message", id: newId("message"), role: "assistant", status: "completed", content };
}

export function functionCall(callId: string, name = "client_tool"): Item {
  const id = newId("functionCall");
  return { type: "function_call", id, call_id: callId, name, arguments: "{}", status: "completed" };
}

/** The events of an item that came whole, at its place. */
export function itemEvents(item: Item, index: number): TurnEvent[] {
  return ["added", "done"].map((what) => ({
    type: `response.output_item.${what}`,
    output_index: index,
    item,
  }));
}

export function result(items: readonly Item[], over: Partial<StepResult> = {}): StepResult {
  return {
    verdict: { next: "end", status: "completed" },
    items: [...items],
    output: items.map((item, index) => ({ index, item })),
    calls: [],
    events: items.flatMap((item, index) => itemEvents(item, index)),
    nextOutputIndex: items.length,
    ...over,
  };
}

export function usedCall(id: string | null, inputTokens = 10, outputTokens = 5): ModelCallEnd {
  return {
    id: id ?? "",
    outcome: "used",
    responseId: "resp_upstream",
    requestId: "req_1",
    tokens: { inputTokens, cachedTokens: 2, cacheWriteTokens: 3, outputTokens, reasoningTokens: 1 },
    costUsd: 0.5,
    isEstimated: false,
    failure: null,
  };
}

/** Claims the first step of an admitted turn and ends the turn with these items. */
export async function answer(
  database: Database,
  turn: Turn,
  items: readonly Item[] = [message("Hello")],
  ending: Ending = { status: "completed" },
): Promise<Ended> {
  const { modelCallId } = await claimed(database, fence(turn));
  const verdict = { next: "end", status: ending.status } as const;
  return endTurn(database, turn, ending, {
    lastStep: {
      fence: fence(turn),
      result: result(items, { verdict }),
      modelCall: usedCall(modelCallId),
    },
  });
}

export async function reread(database: Database, turn: { id: string }): Promise<Turn> {
  const found = await readTurnOfWorkflow(database, turn.id);
  if (found === null) throw new Error(`There is no turn ${turn.id}.`);
  return found;
}

/** All recorded events of a turn; their numbers have no gaps. */
export async function recordedEvents(database: Database, turn: EventKey): Promise<NumberedEvent[]> {
  const pages = await readEventsAfter(database, [{ ...turn, after: -1 }], 100_000);
  const events = (pages.get(turn.id) ?? []).map(parseEvent);
  expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
  return events;
}

export function typesOf(events: readonly TurnEvent[]): string[] {
  return events.map((event) => event.type);
}

/** Writes events that carry only a mark. */
export async function flush(
  database: Database,
  by: Fence,
  number: number,
  marks: readonly string[],
): Promise<FlushOutcome["state"] | undefined> {
  const bodies = marks.map((mark) => eventBody({ type: "test.mark", mark }));
  const [outcome] = await flushEvents(database, [
    { ...by, flush: number, bodies, nextOutputIndex: 0, place: null },
  ]);
  return outcome?.state;
}

export async function marksOf(database: Database, turn: Turn): Promise<unknown[]> {
  const events = await recordedEvents(database, turn);
  return events.filter((event) => event.type === "test.mark").map((event) => event["mark"]);
}
