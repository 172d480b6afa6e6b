/**
 * `npm run soak`: outages, a slow provider, and a long time under steady work with random faults. Every
 * turn is accounted for. See docs/crash-matrix.md.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command, InvalidArgumentError } from "commander";
import { installTemporal } from "../setup/temporal.mjs";
import { endWithChildren } from "./endWithChildren.ts";
import { writeWorkflowBundle } from "../test/setup/workflowBundle.ts";
import { Lane } from "./lane.ts";
import { outage, slowProvider, soak } from "./phases.ts";
import type { PhaseResult } from "./phases.ts";
import { randomOf } from "./random.ts";
import { seconds, table } from "./report.ts";

interface Options {
  minutes: number;
  rate: number;
  seed: number;
  outageSeconds: number;
  waiting: number;
  killEvery: number;
  markdown?: string;
}

function amount(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value >= 0) return value;
  throw new InvalidArgumentError("It must be a number, 0 or more; 0 leaves that part out.");
}

const options = new Command("npm run soak --")
  .description("Outages, a slow provider, and steady work with random faults.")
  .option("--minutes <n>", "of steady work", amount, 10)
  .option("--rate <n>", "turns begun a second", amount, 1)
  .option("--seed <n>", "kinds, victims and times of faults follow from it", amount, 1)
  .option("--outage-seconds <n>", "each of PostgreSQL and Temporal", amount, 60)
  .option("--waiting <n>", "turns that wait for a slow provider at a time", amount, 500)
  .option("--kill-every <n>", "seconds between kills in the steady work", amount, 15)
  .option("--markdown <file>", "write the table there as well")
  .parse()
  .opts<Options>();

const secondMs = 1_000;
const minuteMs = 60_000;
const slowMs = 30_000;
/** A worker or a gateway that holds hundreds of streams stays below. */
const memoryBarMb = 512;
const growthBar = 0.1;
/** Shorter phases have no time after their first minutes. */
const growthAfterMinutes = 5;

const startedAt = performance.now();
function say(line: string): void {
  const elapsed = ((performance.now() - startedAt) / secondMs).toFixed(0).padStart(5);
  process.stderr.write(`[${elapsed} s] ${line}\n`);
}

async function runPhases(lane: Lane): Promise<PhaseResult[]> {
  const random = randomOf(options.seed, "soak");
  const results: PhaseResult[] = [];
  const ms = options.outageSeconds * secondMs;
  const load = { perSecond: options.rate, random, say };
  if (ms > 0) {
    results.push(await outage(lane, "PostgreSQL", { ...load, ms }));
    results.push(await outage(lane, "Temporal", { ...load, ms }));
  }
  if (options.waiting > 0) {
    results.push(await slowProvider(lane, { turns: options.waiting, ms: slowMs, random, say }));
  }
  if (options.minutes > 0) {
    const killEveryMs = options.killEvery * secondMs;
    results.push(await soak(lane, { ...load, ms: options.minutes * minuteMs, killEveryMs }));
  }
  return results;
}

function isLong({ name }: PhaseResult): boolean {
  return name.startsWith("soak") && options.minutes >= growthAfterMinutes;
}

function isKept(result: PhaseResult): boolean {
  // What could not be measured is not kept.
  const isSteady = !isLong(result) || (result.growth ?? Number.NaN) <= growthBar;
  const { megabytes } = result.peak;
  const isBounded = megabytes > 0 && megabytes <= memoryBarMb;
  return result.problems.length === 0 && isBounded && isSteady;
}

function tableOf(results: readonly PhaseResult[]): string {
  const head = [
    "phase",
    "turns",
    "model calls",
    "kills",
    "problems (bar 0)",
    "the last turn ended after",
    `peak RSS (bar ${memoryBarMb} MB)`,
    `growth (bar ${growthBar * 100} %)`,
    "",
  ];
  const rows = results.map((result) => [
    result.name,
    `${result.turns}`,
    `${result.calls}`,
    `${result.kills}`,
    `${result.problems.length}`,
    `${seconds(result.recoverMs)} s`,
    `${result.peak.megabytes.toFixed(0)} MB (${result.peak.name})`,
    isLong(result) && result.growth !== null ? `${(result.growth * 100).toFixed(1)} %` : "",
    isKept(result) ? "kept" : "**broken**",
  ]);
  return table([head, ...rows]);
}

endWithChildren();
const folder = await mkdtemp(join(tmpdir(), "turnkeeper-soak-"));
const workflowBundle = join(folder, "workflows.js");
await writeWorkflowBundle(workflowBundle);
const lane = await Lane.open({
  temporalBinary: await installTemporal(),
  workflowBundle,
  workers: 3,
  gateways: 2,
});
const results = await runPhases(lane);
await lane.close();
await rm(folder, { recursive: true });
const printed = tableOf(results);
console.log(printed);
if (options.markdown !== undefined) await writeFile(options.markdown, `${printed}\n`);
for (const { name, problems } of results) {
  for (const { breach, detail } of problems) say(`${name}: ${breach}: ${detail}`);
}
process.exit(results.every(isKept) ? 0 : 1);
