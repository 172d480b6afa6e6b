import { setTimeout as delay } from "node:timers/promises";
import { readTurnOfWorkflow } from "../src/store/turns.ts";
import { isTerminalEvent } from "../src/turn/events.ts";
import type { Turn } from "../src/turn/turn.ts";
import type { Cell } from "./cells.ts";
import type { Lane } from "./lane.ts";
import type { LaneProcess } from "./laneProcess.ts";
import { describeWorkflow, lostWorkflowTask, untilQuiet } from "./quiet.ts";
import { pick, randomOf } from "./random.ts";
import type { Random } from "./random.ts";
import { expectedText, scriptModel } from "./scenario.ts";
import type { ModelCall } from "./scenario.ts";
import { Subscriber } from "./subscriber.ts";
import type { Held, Moment } from "./tripwire.ts";
import { judge } from "./verdict.ts";
import type { Problem } from "./verdict.ts";

/** What came of one kill. */
export interface CellResult {
  cell: Cell;
  problems: Problem[];
  /** From the kill until another process has taken over what the victim died with. */
  resumeMs: number | null;
  /** From the kill to the turn's end on record; to the workflow's end, if the turn had ended. */
  recoverMs: number | null;
  /** What the victim died with, as Temporal tells: its timeout is the one that has to pass. */
  inside: "activity" | "workflow task";
  /** Calls to the model that were made and not used. */
  wasted: number;
  /** Connections of the subscriber. */
  connections: number;
}

/** Whether some points are reached depends on how fast the machine is: those may be tried again. */
const notReached = "the point was not reached";
const reachWithinMs = 60_000;
const afterEndMs = 10_000;
/** A turn that has not ended by then is lost. */
const endWithinMs = 60_000;
const quietWithinMs = 40_000;

/** A result of which nothing is known yet. */
export function noResult(cell: Cell): CellResult {
  return {
    cell,
    problems: [],
    resumeMs: null,
    recoverMs: null,
    inside: "activity",
    wasted: 0,
    connections: 0,
  };
}

const maxTries = 3;

/** Runs one turn and strikes at the cell's point; the lane is quiet before and after. */
export async function runCell(lane: Lane, cell: Cell, seed: number): Promise<CellResult> {
  for (let tries = 1; ; tries++) {
    const result = await tryCell(lane, cell, seed);
    const [problem, ...others] = result.problems;
    const isMissed = problem?.detail === notReached && others.length === 0;
    if (!isMissed || tries === maxTries) return result;
  }
}

async function tryCell(lane: Lane, cell: Cell, seed: number): Promise<CellResult> {
  const { point, policy } = cell;
  const random = randomOf(seed, cell.name);
  lane.simulator.reset();
  lane.effects.reset();
  const calls = scriptModel(lane, point.scenario, random);
  const result = noResult(cell);
  const subscriber = new Subscriber(
    lane.gateways.map((gateway) => gateway.url),
    { model: policy, input: point.scenario },
  );
  const over = new AbortController();
  const reached = lane.tripwire.arm(point);
  const followed = subscriber.follow(over.signal);
  followed.catch(() => {});
  // What comes behind a turn's end comes soon.
  const ended = followed.then(() => delay(afterEndMs, null));
  const held = await within(Promise.race([reached, ended]), reachWithinMs);
  lane.tripwire.disarm();
  const struckAt = new Date();
  const { takeovers, struck } =
    held === null
      ? { takeovers: {}, struck: Promise.resolve(notReached) }
      : strike(lane, cell, held, subscriber, random);
  await within(followed, endWithinMs);
  over.abort();
  const complaint = await struck;
  lane.tripwire.onMoment = () => {};
  if (complaint !== null) result.problems.push({ breach: "other", detail: complaint });
  result.connections = subscriber.connections;
  result.wasted = calls.length - new Set(calls.map((call) => call.step)).size;
  await examine(lane, result, subscriber, calls);
  if (subscriber.turnId !== null) {
    result.recoverMs = await recovery(lane, subscriber.turnId, struckAt);
    if (await lostWorkflowTask(lane, subscriber.turnId)) result.inside = "workflow task";
    result.resumeMs = takeovers[result.inside] ?? null;
  }
  return result;
}

/** From the strike until another process has done its first of each, in milliseconds. */
type Takeovers = Partial<Record<CellResult["inside"], number>>;

/** Strikes, and notes when another process goes on with what the victim had under way. */
function strike(
  lane: Lane,
  cell: Cell,
  held: Held,
  subscriber: Subscriber,
  random: Random,
): { takeovers: Takeovers; struck: Promise<string | null> } {
  const { point, way } = cell;
  const process = victimOf(lane, cell, held, subscriber, random);
  const takeovers: Takeovers = {};
  const struckAt = performance.now();
  lane.tripwire.onMoment = (moment) => {
    const what = moment.process === process.name ? null : takenOver(moment);
    if (what !== null) takeovers[what] ??= performance.now() - struckAt;
  };
  const struck = way
    .strike({ lane, point, held, subscriber, process })
    .catch((error: unknown) => `the harness failed: ${String(error)}`);
  return { takeovers, struck };
}

/** Waits until nothing goes on any more, and holds the turn against everything that must hold of it. */
async function examine(
  lane: Lane,
  { cell, problems }: CellResult,
  subscriber: Subscriber,
  calls: readonly ModelCall[],
): Promise<void> {
  const { turnId } = subscriber;
  const hasEnded = isTerminalEvent(subscriber.events.at(-1)?.type ?? "");
  if (turnId === null || !hasEnded) {
    const detail = `the turn ${turnId} did not end: ${String(subscriber.lastError)}`;
    problems.push({ breach: "lost", detail });
    return;
  }
  const left = await untilQuiet(lane, [turnId], quietWithinMs);
  if (left.length > 0) problems.push({ breach: "left behind", detail: left.join(", ") });
  problems.push(
    ...subscriber.refusals.map((detail): Problem => ({ breach: "other", detail })),
    ...(await judge({
      database: lane.database,
      turn: (await readTurnOfWorkflow(lane.database, turnId)) as Turn,
      mayBeGivenUp: cell.policy === "foreground",
      mayBeUnknown: cell.way.victim === "worker" || cell.way.victim === "Temporal",
      expected: { text: expectedText(cell.point.scenario), statuses: statusesAfter(cell) },
      seen: subscriber.events,
      calls,
      bill: lane.simulator.bill,
      effects: lane.effects.counts,
    })),
  );
}

/** What a process takes over when it does this. */
function takenOver({ what, side }: Moment): CellResult["inside"] | null {
  if (side === "before") return null;
  switch (what) {
    case "claim of a model step":
    case "claim of a tool step":
    case "RespondActivityTaskCompleted":
      return "activity";
    case "RespondWorkflowTaskCompleted":
      return "workflow task";
    default:
      return null;
  }
}

/** Whose connection or stream it is that is held; else one that could be meant as well. */
function victimOf(
  lane: Lane,
  { way }: Cell,
  held: Held,
  subscriber: Subscriber,
  random: Random,
): LaneProcess {
  if (way.victim === "gateway") {
    return lane.gateways.find((gateway) => gateway.url === subscriber.url) as LaneProcess;
  }
  const own = lane.workers.find((worker) => worker.name === held.process);
  return own ?? pick(random, lane.workers);
}

/**
 * A turn that was terminated by hand ends failed. Where the answer was whole by then, or could become
 * so before its worker heard of it, its ending wins.
 */
function statusesAfter({ point, way }: Cell): Turn["status"][] {
  if (way.victim !== "workflow") return ["completed"];
  return point.at === "model" || point.at === "tool" ? ["failed"] : ["failed", "completed"];
}

async function recovery(lane: Lane, turnId: string, struckAt: Date): Promise<number | null> {
  const turn = await readTurnOfWorkflow(lane.database, turnId);
  if (turn === null || turn.endedAt === null) return null;
  if (turn.endedAt > struckAt) return turn.endedAt.getTime() - struckAt.getTime();
  const closedAt = (await describeWorkflow(lane, turnId))?.closeTime;
  return closedAt === undefined ? null : Math.max(0, closedAt.getTime() - struckAt.getTime());
}

/** `null` when it takes longer. */
async function within<Result>(work: Promise<Result>, ms: number): Promise<Result | null> {
  const controller = new AbortController();
  const late = delay(ms, null, { signal: controller.signal });
  late.catch(() => {});
  try {
    return await Promise.race([work, late]);
  } finally {
    controller.abort();
  }
}
