import { setTimeout as delay } from "node:timers/promises";
import { WorkflowNotFoundError } from "@temporalio/client";
import { readTurnOfWorkflow } from "../src/store/turns.ts";
import { isTerminal } from "../src/turn/turn.ts";
import type { Lane } from "./lane.ts";
import type { LaneProcess } from "./laneProcess.ts";
import type { MatrixPoint } from "./points.ts";
import type { Held } from "./tripwire.ts";
import type { Users } from "./users.ts";

export type Victim = "worker" | "gateway" | "Temporal" | "PostgreSQL" | "workflow";

/** What is done, at which point, with whom. */
export interface Scene {
  lane: Lane;
  point: MatrixPoint;
  held: Held;
  /** The worker or the gateway that is meant; of a server's own ways it is of no interest. */
  process: LaneProcess;
  users: Pick<Users, "turns" | "disconnect">;
}

/** One way in which one kind of process fails. */
export interface Way {
  victim: Victim;
  way: "kill -9" | "SIGTERM" | "SIGSTOP" | "cut" | "by hand";
  /**
   * Fails the victim, lets go of what is held, and brings the victim back.
   *
   * @returns what was wrong with how it ended, if anything.
   */
  strike(scene: Scene): Promise<string | null>;
}

/** How long a process is paused or cut off: longer than the heartbeat timeout of 5 s. */
export const pauseMs = 7_000;
const serverAwayMs = 500;
const serverCutMs = 3_000;
const exitWithinMs = 20_000;
const endWithinMs = 20_000;

/** A message on its way to a server; a model's stream and a tool's request are no such things. */
function isMessage({ at }: MatrixPoint): boolean {
  return at === "statement" || at === "call";
}

function isOwn({ held, process }: Scene): boolean {
  return held.process === process.name;
}

/** What the victim had under way breaks with it; what others had goes on. */
function letGo(scene: Scene, isVictims: boolean): void {
  if (isVictims && isMessage(scene.point)) scene.held.drop();
  else scene.held.release();
}

async function killProcess(scene: Scene): Promise<null> {
  const exited = scene.process.exited();
  scene.process.signal("SIGKILL");
  await exited;
  letGo(scene, isOwn(scene));
  return null;
}

async function terminateProcess(scene: Scene): Promise<string | null> {
  const { process, point, held } = scene;
  const exited = process.exited();
  process.signal("SIGTERM");
  // A call that goes on outlives the grace, so that its step is handed over.
  const isHandedOver = isOwn(scene) && !isMessage(point);
  if (!isHandedOver) held.release();
  const controller = new AbortController();
  const late = delay(exitWithinMs, "late" as const, { signal: controller.signal });
  late.catch(() => {});
  const code = await Promise.race([exited, late]);
  controller.abort();
  held.release();
  if (code === "late") process.signal("SIGKILL");
  return code === 0 ? null : `${process.name} ended with ${code} at SIGTERM`;
}

async function pauseProcess(scene: Scene): Promise<null> {
  const { process, held } = scene;
  process.signal("SIGSTOP");
  if (!isOwn(scene)) held.release();
  await delay(pauseMs);
  process.signal("SIGCONT");
  held.release();
  return null;
}

async function cutProcess(scene: Scene): Promise<null> {
  const { doors, role } = scene.process;
  doors.postgres.shut();
  doors.temporal.shut();
  if (role !== "worker") scene.users.disconnect();
  letGo(scene, isOwn(scene));
  await delay(pauseMs);
  doors.postgres.open();
  doors.temporal.open();
  return null;
}

function stopTemporal(signal: "SIGKILL" | "SIGTERM") {
  return async (scene: Scene): Promise<null> => {
    const { lane, point } = scene;
    const server = lane.temporalServer;
    await (signal === "SIGKILL" ? server.kill() : server.stop());
    letGo(scene, point.at === "call");
    await delay(serverAwayMs);
    await lane.restartTemporal();
    return null;
  };
}

async function pauseTemporal({ lane, point, held }: Scene): Promise<null> {
  const { pid } = lane.temporalServer;
  process.kill(pid, "SIGSTOP");
  if (point.at !== "call") held.release();
  await delay(pauseMs);
  process.kill(pid, "SIGCONT");
  held.release();
  return null;
}

function stopPostgres(how: "crash" | "stop") {
  return async (scene: Scene): Promise<null> => {
    const { postgres } = scene.lane;
    await postgres[how]();
    letGo(scene, scene.point.at === "statement");
    await delay(serverAwayMs);
    await postgres.start();
    return null;
  };
}

async function pausePostgres({ lane, point, held }: Scene): Promise<null> {
  await lane.postgres.freeze();
  if (point.at !== "statement") held.release();
  await delay(pauseMs);
  await lane.postgres.thaw();
  held.release();
  return null;
}

function cutServer(server: "temporal" | "postgres", at: MatrixPoint["at"]) {
  return async (scene: Scene): Promise<null> => {
    const doors = scene.lane.processes.map((each) => each.doors[server]);
    for (const door of doors) door.shut();
    letGo(scene, scene.point.at === at);
    await delay(serverCutMs);
    for (const door of doors) door.open();
    return null;
  };
}

/** A head start may have shown the first event before Temporal has the workflow. */
async function terminateOnceThere({ temporal, database }: Lane, turnId: string): Promise<void> {
  const giveUpAt = Date.now() + endWithinMs;
  for (;;) {
    try {
      await temporal.workflow.getHandle(turnId).terminate("by hand");
      return;
    } catch (error) {
      const turn = await readTurnOfWorkflow(database, turnId);
      const mayCome = turn !== null && !isTerminal(turn.status) && Date.now() < giveUpAt;
      if (!(error instanceof WorkflowNotFoundError) || !mayCome) throw error;
      await delay(100);
    }
  }
}

/** Until the turn has ended, a call that is under way goes on, so that it cannot end it itself. */
async function terminateWorkflow({ lane, point, held, users }: Scene): Promise<null> {
  // Its user may not have heard of it yet, and one that was started in Temporal is not on record at once.
  const [turn] = await lane.database.query<{ id: string }>(
    "SELECT id FROM turns ORDER BY created_at DESC LIMIT 1",
    [],
  );
  const id = users.turns.at(-1)?.subscriber.turnId ?? turn?.id ?? "";
  await terminateOnceThere(lane, id);
  const giveUpAt = Date.now() + (isMessage(point) ? 0 : endWithinMs);
  while (Date.now() < giveUpAt) {
    const now = await readTurnOfWorkflow(lane.database, id);
    if (now !== null && isTerminal(now.status)) break;
    await delay(100);
  }
  held.release();
  return null;
}

export const ways: readonly Way[] = [
  { victim: "worker", way: "kill -9", strike: killProcess },
  { victim: "worker", way: "SIGTERM", strike: terminateProcess },
  { victim: "worker", way: "SIGSTOP", strike: pauseProcess },
  { victim: "worker", way: "cut", strike: cutProcess },
  { victim: "gateway", way: "kill -9", strike: killProcess },
  { victim: "gateway", way: "SIGTERM", strike: terminateProcess },
  { victim: "gateway", way: "SIGSTOP", strike: pauseProcess },
  { victim: "gateway", way: "cut", strike: cutProcess },
  { victim: "Temporal", way: "kill -9", strike: stopTemporal("SIGKILL") },
  { victim: "Temporal", way: "SIGTERM", strike: stopTemporal("SIGTERM") },
  { victim: "Temporal", way: "SIGSTOP", strike: pauseTemporal },
  { victim: "Temporal", way: "cut", strike: cutServer("temporal", "call") },
  { victim: "PostgreSQL", way: "kill -9", strike: stopPostgres("crash") },
  { victim: "PostgreSQL", way: "SIGTERM", strike: stopPostgres("stop") },
  { victim: "PostgreSQL", way: "SIGSTOP", strike: pausePostgres },
  { victim: "PostgreSQL", way: "cut", strike: cutServer("postgres", "statement") },
  { victim: "workflow", way: "by hand", strike: terminateWorkflow },
];
