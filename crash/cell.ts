import { setTimeout as delay } from "node:timers/promises";
import { readTurnOfWorkflow } from "../src/store/turns.ts";
import { isTerminal } from "../src/turn/turn.ts";
import type { Turn } from "../src/turn/turn.ts";
import type { Cell } from "./cells.ts";
import type { Lane } from "./lane.ts";
import type { LaneProcess } from "./laneProcess.ts";
import { describeWorkflow, untilQuiet } from "./quiet.ts";
import { pick, randomOf } from "./random.ts";
import type { Random } from "./random.ts";
import { expectedText, scriptModel } from "./scenario.ts";
import { Subscriber } from "./subscriber.ts";
import type { Held, Moment } from "./tripwire.ts";
import { judge } from "./verdict.ts";
import type { Problem } from "./verdict.ts";

/** What came of one kill. */
export interface CellResult {
  cell: Cell;
  problems: Problem[];
  /** From the kill until another process has gone on with the turn. */
  resumeMs: number | null;
  /** From the kill to the turn's end on record; to the workflow's end, if the turn had ended. */
  recoverMs: number | null;
  /** Calls to the model that were made and not used. */
  wasted: number;
  /** Connections of the subscriber. */
  connections: number;
}

const reachWithinMs = 60_000;
/** A turn that has not ended by then is lost. */
const endWithinMs = 60_000;
const quietWithinMs = 40_000;

/** Runs one turn and strikes at the cell's point; the lane is quiet before and after. */
export async function runCell(lane: Lane, cell: Cell, seed: number): Promise<CellResult> {
  const { point, way, policy } = cell;
  const random = randomOf(seed, cell.name);
  lane.simulator.reset();
  lane.effects.reset();
  const calls = scriptModel(lane, point.scenario, random);
  const result: CellResult = {
    cell,
    problems: [],
    resumeMs: null,
    recoverMs: null,
    wasted: 0,
    connections: 0,
  };
  const subscriber = new Subscriber(
    lane.gateways.map((gateway) => gateway.url),
    { model: policy, input: point.scenario },
  );
  const over = new AbortController();
  const reached = lane.tripwire.arm(point);
  const followed = subscriber.follow(over.signal);
  followed.catch(() => {});
  const held = await within(reached, reachWithinMs);
  lane.tripwire.disarm();
  const struckAt = new Date();
  let struck: Promise<string | null> = Promise.resolve(null);
  if (held === null) result.problems.push({ breach: "other", detail: "the point was not reached" });
  else {
    const process = victimOf(lane, cell, held, subscriber, random);
    lane.tripwire.onMoment = (moment) => {
      if (isProgress(moment) && moment.process !== process.name) {
        result.resumeMs ??= Date.now() - struckAt.getTime();
      }
    };
    struck = way
      .strike({ lane, point, held, subscriber, process })
      .catch((error: unknown) => `the harness failed: ${String(error)}`);
  }
  const last = await within(followed, endWithinMs);
  over.abort();
  const complaint = await struck;
  if (complaint !== null) result.problems.push({ breach: "other", detail: complaint });
  result.connections = subscriber.connections;
  const { turnId } = subscriber;
  if (last === null || turnId === null) {
    result.problems.push({
      breach: "lost",
      detail: `the turn ${turnId} did not end: ${String(subscriber.lastError)}`,
    });
    return result;
  }
  const left = await untilQuiet(lane, [turnId], quietWithinMs);
  if (left.length > 0) result.problems.push({ breach: "left behind", detail: left.join(", ") });
  const turn = (await readTurnOfWorkflow(lane.database, turnId)) as Turn;
  result.problems.push(
    ...subscriber.refusals.map((detail): Problem => ({ breach: "other", detail })),
    ...(await judge({
      database: lane.database,
      turn,
      expected: { text: expectedText(point.scenario), statuses: statusesAfter(cell) },
      seen: subscriber.events,
      calls,
      bill: lane.simulator.bill,
      effects: lane.effects.counts,
    })),
  );
  result.recoverMs = await recovery(lane, turn, struckAt);
  result.wasted = calls.length - new Set(calls.map((call) => call.step)).size;
  return result;
}

const progress: ReadonlySet<string> = new Set([
  "claim of a model step",
  "claim of a tool step",
  "RespondActivityTaskCompleted",
  "RespondWorkflowTaskCompleted",
]);

/** What a process does that takes over, or goes on, where another one has died. */
function isProgress({ what, side }: Moment): boolean {
  return side === "after" && progress.has(what);
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

async function recovery(lane: Lane, turn: Turn, struckAt: Date): Promise<number | null> {
  if (!isTerminal(turn.status) || turn.endedAt === null) return null;
  if (turn.endedAt > struckAt) return turn.endedAt.getTime() - struckAt.getTime();
  const closedAt = (await describeWorkflow(lane, turn.id))?.closeTime;
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
