import { setTimeout as delay } from "node:timers/promises";
import type { Lane } from "./lane.ts";
import { Load } from "./load.ts";
import type { LoadOptions } from "./load.ts";
import { Memory } from "./memory.ts";
import type { Peak } from "./memory.ts";
import { points } from "./points.ts";
import type { MatrixPoint } from "./points.ts";
import { untilQuiet } from "./quiet.ts";
import { pick } from "./random.ts";
import type { Random } from "./random.ts";
import type { Problem } from "./verdict.ts";
import { ways } from "./ways.ts";

/** What a time under load came to. */
export interface PhaseResult {
  name: string;
  turns: number;
  calls: number;
  /** Processes and servers that were killed, paused or cut off. */
  kills: number;
  problems: Problem[];
  /** From when all was back, or the last turn began, to the end of the last turn. */
  recoverMs: number;
  peak: Peak;
  /** The largest growth of a process that nobody killed; `null` where it says nothing. */
  growth: number | null;
}

/** On two loaded cores hundreds of turns that begin at once take minutes. */
const settleWithinMs = 600_000;
/** Problems that are said at once; all of them are in the end. */
const maxSaid = 10;
const quietWithinMs = 60_000;

interface Work {
  load: Load;
  /** For what was wrong with how something was struck. */
  complaints: string[];
}

/** Runs `work` under load, then waits for everything that was begun and holds it against the record. */
async function phase(
  lane: Lane,
  name: string,
  load: Load,
  say: (line: string) => void,
  work: (work: Work) => Promise<number>,
): Promise<PhaseResult> {
  say(`${name}: begins`);
  const memory = new Memory(lane.processes);
  const complaints: string[] = [];
  const kills = await work({ load, complaints });
  const backAt = performance.now();
  say(`${name}: ${load.turns.length} turns, ${load.unfinished} to end`);
  await load.settle(settleWithinMs);
  const recoverMs = performance.now() - backAt;
  const turnIds = load.turns.flatMap(({ subscriber }) => subscriber.turnId ?? []);
  const left = await untilQuiet(lane, turnIds, quietWithinMs);
  memory.stop();
  const { problems, ...accounts } = await load.account();
  if (left.length > 0) problems.push({ breach: "left behind", detail: left.join(", ") });
  const crashes = lane.processes.flatMap((process) => process.takeCrashes());
  for (const detail of [...complaints, ...crashes]) problems.push({ breach: "other", detail });
  say(`${name}: ${problems.length} problems`);
  for (const { breach, detail } of problems.slice(0, maxSaid)) say(`  ${breach}: ${detail}`);
  return {
    name,
    ...accounts,
    kills,
    problems,
    recoverMs,
    peak: memory.peak(),
    growth: Math.max(...survivors(lane).map(({ name: of }) => memory.growth().get(of) ?? 0)),
  };
}

/** An outage of a server, while turns go on to be asked for. */
export function outage(
  lane: Lane,
  server: "PostgreSQL" | "Temporal",
  options: { perSecond: number; ms: number; random: Random; say: (line: string) => void },
): Promise<PhaseResult> {
  const { perSecond, ms, random, say } = options;
  const name = `${server} away for ${Math.round(ms / 1_000)} s`;
  const lead = 5_000;
  return phase(lane, name, new Load(lane, random), say, async ({ load }) => {
    const asked = load.run(perSecond, lead + ms);
    await delay(lead);
    if (server === "PostgreSQL") await lane.postgres.stop();
    else await lane.temporalServer.stop();
    await asked;
    if (server === "PostgreSQL") await lane.postgres.start();
    else await lane.restartTemporal();
    return 1;
  });
}

/** Many turns at a time wait for a provider that takes `ms` to say its first word. */
export function slowProvider(
  lane: Lane,
  options: { turns: number; ms: number; random: Random; say: (line: string) => void },
): Promise<PhaseResult> {
  const { turns, ms, random, say } = options;
  const slow: Partial<LoadOptions> = { firstDelayMs: ms, silenceMs: ms * 10 };
  const name = `${turns} turns wait for a provider that takes ${Math.round(ms / 1_000)} s`;
  return phase(lane, name, new Load(lane, random, slow), say, async ({ load }) => {
    for (let begun = 0; begun < turns; begun++) load.begin();
    return 0;
  });
}

/** Steady work, with a provider that fails now and then and processes that die at random. */
export function soak(
  lane: Lane,
  options: {
    perSecond: number;
    ms: number;
    killEveryMs: number;
    random: Random;
    say: (line: string) => void;
  },
): Promise<PhaseResult> {
  const { perSecond, ms, killEveryMs, random, say } = options;
  const name = `soak of ${(ms / 60_000).toFixed(1)} min at ${perSecond}/s`;
  const load = new Load(lane, random, { faultShare: 0.1 });
  return phase(lane, name, load, say, async ({ complaints }) => {
    const until = performance.now() + ms;
    const asked = load.run(perSecond, ms);
    let kills = 0;
    while (performance.now() + killEveryMs < until) {
      await delay(killEveryMs * (0.5 + random()));
      const complaint = await strikeAtRandom(lane, random, say);
      if (complaint !== null) complaints.push(complaint);
      kills += 1;
      await lane.ready();
      say(`${name}: ${load.turns.length} turns, ${load.unfinished} under way`);
    }
    await asked;
    return kills;
  });
}

/** Whoever nobody kills, so that its memory tells something. */
function survivors(lane: Lane) {
  return [lane.workers[0], lane.gateways[0]].filter((each) => each !== undefined);
}

/** Nothing is held: whatever is under way is hit. */
const anywhere = points.find((point) => point.at === "model") as MatrixPoint;

async function strikeAtRandom(
  lane: Lane,
  random: Random,
  say: (line: string) => void,
): Promise<string | null> {
  const way = pick(
    random,
    ways.filter(({ victim }) => victim !== "workflow"),
  );
  const spared = survivors(lane);
  const role = way.victim === "gateway" ? lane.gateways : lane.workers;
  const process = pick(
    random,
    role.filter((each) => !spared.includes(each)),
  );
  say(`  ${way.victim} ${way.way}`);
  return way.strike({
    lane,
    point: anywhere,
    held: { process: "", reachedAt: 0, release: () => {}, drop: () => {} },
    process,
    users: { turns: [], disconnect: () => {} },
  });
}
