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
import { scriptModel } from "./model.ts";
import type { ModelCall } from "./model.ts";
import { readPlace } from "./record.ts";
import { scenarios } from "./scenarios.ts";
import type { Held, Moment } from "./tripwire.ts";
import { Users } from "./users.ts";
import type { CellTurn } from "./users.ts";
import { checkInterrupt, checkOrder, judge } from "./verdict.ts";
import type { Problem } from "./verdict.ts";
import { pauseMs } from "./ways.ts";

/** What came of one kill. */
export interface CellResult {
  cell: Cell;
  struckAt: Date;
  problems: Problem[];
  /** From the kill until another process has taken over what the victim died with. */
  resumeMs: number | null;
  /** From the kill to the turn's end on record; to the workflow's end, if the turn had ended. */
  recoverMs: number | null;
  /** What the victim died with, whose timeout is the one that has to pass. */
  inside: "activity" | "workflow task";
  /** Calls to the model that were made and not used. */
  wasted: number;
  /** Connections of the subscriber. */
  connections: number;
}

/** A worker that lives and hears of a cancel keeps to it within this. */
const cancelWithinMs = 2_000;

/** Whether some points are reached depends on how fast the machine is: those may be tried again. */
const notReached = "the point was not reached";
const reachWithinMs = 60_000;
const afterEndMs = 2_000;
/** A turn that has not ended by then is lost. */
const endWithinMs = 60_000;
const quietWithinMs = 40_000;

/** A result of which nothing is known yet. */
export function noResult(cell: Cell): CellResult {
  return {
    cell,
    struckAt: new Date(),
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
  const { scenario } = point;
  const random = randomOf(seed, cell.name);
  lane.simulator.reset();
  lane.effects.reset();
  const result = noResult(cell);
  const over = new AbortController();
  const users = new Users(lane, scenario.agent(policy), over.signal);
  const calls = scriptModel(lane, scenario, () => users.turns.length, random);
  const reached = users.begun(point.turn).then(() => lane.tripwire.arm(point));
  const followed = scenario.run(users);
  followed.catch(() => {});
  const held = await within(Promise.race([reached, behind(followed, lane, users)]), reachWithinMs);
  lane.tripwire.disarm();
  result.struckAt = new Date();
  const asked = users.turns.slice();
  const { takeovers, struck } =
    held === null
      ? { takeovers: {}, struck: Promise.resolve(notReached) }
      : strike(lane, cell, held, users, random);
  await within(followed, endWithinMs);
  over.abort();
  const complaint = await struck;
  lane.tripwire.onMoment = () => {};
  if (complaint !== null) result.problems.push({ breach: "other", detail: complaint });
  result.connections = users.turns.reduce((sum, turn) => sum + turn.subscriber.connections, 0);
  result.wasted = calls.length - new Set(calls.map((call) => `${call.turn} ${call.step}`)).size;
  await examine(lane, result, users, calls);
  result.recoverMs = await recovery(lane, idsOf(asked), result.struckAt);
  result.inside = await diedInside(lane, idsOf(users.turns));
  result.resumeMs = takeovers[result.inside] ?? null;
  return result;
}

function idsOf(turns: readonly CellTurn[]): string[] {
  return turns.flatMap(({ subscriber }) => subscriber.turnId ?? []);
}

/** Resolves with `null` when what comes behind the ends of turns has come as well. */
async function behind(followed: Promise<unknown>, lane: Lane, users: Users): Promise<null> {
  await followed;
  await untilQuiet(lane, idsOf(users.turns), quietWithinMs);
  return delay(afterEndMs, null);
}

async function diedInside(lane: Lane, turnIds: readonly string[]): Promise<CellResult["inside"]> {
  for (const turnId of turnIds) {
    if (await lostWorkflowTask(lane, turnId)) return "workflow task";
  }
  return "activity";
}

/** From the strike until another process has done its first of each, in milliseconds. */
type Takeovers = Partial<Record<CellResult["inside"], number>>;

/** Strikes, and notes when another process goes on with what the victim had under way. */
function strike(
  lane: Lane,
  cell: Cell,
  held: Held,
  users: Users,
  random: Random,
): { takeovers: Takeovers; struck: Promise<string | null> } {
  const { point, way } = cell;
  const process = victimOf(lane, cell, held, users, random);
  const takeovers: Takeovers = {};
  const { pid } = process;
  const struckAt = performance.now();
  lane.tripwire.onMoment = (moment) => {
    // The one that is started in its place has its name.
    const isVictim = moment.process === process.name && process.pid === pid;
    // Who was at something else leaves nothing to be taken over.
    if (held.process !== process.name || isVictim) return;
    const what = takenOver(moment);
    if (what !== null) takeovers[what] ??= performance.now() - struckAt;
  };
  const struck = way
    .strike({ lane, point, held, users, process })
    .catch((error: unknown) => `the harness failed: ${String(error)}`);
  return { takeovers, struck };
}

/** Waits until nothing goes on any more, and holds the turns against everything that must hold. */
async function examine(
  lane: Lane,
  result: CellResult,
  users: Users,
  calls: readonly ModelCall[],
): Promise<void> {
  const { cell, problems } = result;
  const turns: Turn[] = [];
  for (const { subscriber } of users.turns) {
    const { turnId } = subscriber;
    const hasEnded = isTerminalEvent(subscriber.events.at(-1)?.type ?? "");
    if (turnId !== null && hasEnded) {
      turns.push((await readTurnOfWorkflow(lane.database, turnId)) as Turn);
      continue;
    }
    const detail = `the turn ${turnId} did not end: ${String(subscriber.lastError)}`;
    problems.push({ breach: "lost", detail });
  }
  const crashes = lane.processes.flatMap((process) => process.takeCrashes());
  problems.push(
    ...[...users.refusals, ...crashes].map((detail): Problem => ({ breach: "other", detail })),
  );
  if (turns.length < users.turns.length) return;
  const left = await untilQuiet(lane, idsOf(users.turns), quietWithinMs);
  if (left.length > 0) problems.push({ breach: "left behind", detail: left.join(", ") });
  const places = await Promise.all(turns.map(({ id }) => readPlace(lane.database, id)));
  problems.push(...checkOrder(places));
  if (cell.point.scenario.second === "interrupts") {
    const streams = users.turns.map(({ subscriber }) => subscriber.events);
    problems.push(...checkInterrupt(turns, streams));
  }
  for (const [at, turn] of turns.entries()) {
    const own = calls.filter((call) => call.turn === at + 1);
    const asked = users.turns[at] as CellTurn;
    problems.push(...(await examineTurn(lane, result, asked, turn, own)));
  }
}

async function examineTurn(
  lane: Lane,
  { cell, struckAt }: CellResult,
  { subscriber, expected }: CellTurn,
  turn: Turn,
  calls: readonly ModelCall[],
): Promise<Problem[]> {
  const requestIds = new Set(calls.map((call) => call.requestId));
  return [
    ...subscriber.refusals.map((detail): Problem => ({ breach: "other", detail })),
    ...(await judge({
      database: lane.database,
      turn,
      mostGivenUp: cell.policy === "foreground" ? Infinity : cell.point.scenario.givenUp,
      mayBeUnknown: cell.way.victim === "worker" || cell.way.victim === "Temporal",
      expected: { ...expected, statuses: statusesAfter(cell, expected.statuses) },
      // While the database is away nobody hears of a cancel, and a whole answer wins over it.
      cancelWithinMs: cell.way.victim === "PostgreSQL" ? Infinity : cancelWithinMs,
      backAt: backAt(cell, struckAt),
      seen: subscriber.events,
      calls,
      bill: lane.simulator.bill.filter(({ requestId }) => requestIds.has(requestId)),
      effects: lane.effects.counts,
    })),
  ];
}

/** What a process takes over when it does this. */
function takenOver({ what, side }: Moment): keyof Takeovers | null {
  if (side === "before") return null;
  switch (what) {
    case "claim of a model step":
    case "claim of a tool step":
    case "claim of a finished step":
    case "admission":
    case "ending of the turn":
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
  users: Users,
  random: Random,
): LaneProcess {
  const isHeld = ({ name }: LaneProcess): boolean => name === held.process;
  if (way.victim !== "gateway") return lane.workers.find(isHeld) ?? pick(random, lane.workers);
  const url = users.turns.at(-1)?.subscriber.url;
  const its = lane.gateways.find((gateway) => gateway.url === url);
  return lane.gateways.find(isHeld) ?? its ?? pick(random, lane.gateways);
}

/**
 * A turn that was terminated by hand ends failed. Where the answer was whole by then, or could become
 * so before its worker heard of it, its ending wins. That everybody has left is noted by the gateway in the
 * database; then nothing lets the turn go on for the seconds that its answer takes.
 */
function statusesAfter(
  { point, way }: Cell,
  statuses: readonly Turn["status"][],
): readonly Turn["status"][] {
  const mayMissLeaving = way.victim === "gateway" || way.victim === "PostgreSQL";
  if (point.scenario === scenarios.left && !mayMissLeaving && statuses.includes("cancelled")) {
    return ["cancelled"];
  }
  if (way.victim !== "workflow") return statuses;
  return point.at === "model" || point.at === "tool" ? ["failed"] : ["failed", ...statuses];
}

/**
 * When a worker that was away heard of cancels again. It may come back with the whole answer before another
 * one could end its turn: what Temporal hands to its broken connection is handed out again only after 5 s.
 */
function backAt({ way }: Cell, struckAt: Date): Date | null {
  const isAway = way.victim === "worker" && (way.way === "cut" || way.way === "SIGSTOP");
  return isAway ? new Date(struckAt.getTime() + pauseMs) : null;
}

/** Of the turns that had been asked for at the strike, until the last of them had ended. */
async function recovery(
  lane: Lane,
  turnIds: readonly string[],
  struckAt: Date,
): Promise<number | null> {
  const times = await Promise.all(turnIds.map((turnId) => endOf(lane, turnId, struckAt)));
  const ends = times.filter((time) => time !== null).map((time) => time.getTime());
  return ends.length === 0 ? null : Math.max(0, Math.max(...ends) - struckAt.getTime());
}

/** When a turn ended; if that was before the strike, when its workflow did. */
async function endOf(lane: Lane, turnId: string, struckAt: Date): Promise<Date | null> {
  const turn = await readTurnOfWorkflow(lane.database, turnId);
  if (turn === null || turn.endedAt === null) return null;
  if (turn.endedAt > struckAt) return turn.endedAt;
  return (await describeWorkflow(lane, turnId))?.closeTime ?? null;
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
