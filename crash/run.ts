/**
 * `npm run crash`: prints the crash matrix. Each cell runs one turn over HTTP against a deployment of
 * its own and kills something at one point of its way. See docs/crash-matrix.md.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import { installTemporal } from "../setup/temporal.mjs";
import { endWithChildren } from "./endWithChildren.ts";
import { writeWorkflowBundle } from "../test/setup/workflowBundle.ts";
import { allCells, defaultKills, drawCells, isOwnKill } from "./cells.ts";
import type { Cell, Policy } from "./cells.ts";
import type { CellResult } from "./cell.ts";
import { laneEnvironment } from "./lane.ts";
import { runMatrix } from "./matrix.ts";
import { matrixTable, seconds, totals, totalsTable } from "./report.ts";

interface Options {
  seed: number;
  kills: number;
  policy: Policy | "both";
  only: string[];
  lanes: number;
  markdown?: string;
  list: boolean;
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0) return value;
  throw new InvalidArgumentError("It must be a whole number.");
}

const options = new Command("npm run crash --")
  .description("Kills processes at every point of a turn and prints what became of the turns.")
  .option("--seed <n>", "order, victims and moments follow from it", wholeNumber, 1)
  .option("--kills <n>", "so many cells, spread over the matrix; 0: all", wholeNumber, defaultKills)
  .addOption(
    new Option("--policy <policy>", "durability of the agent")
      .choices(["foreground", "background", "both"])
      .default("both"),
  )
  .option("--only <texts...>", "cells whose POLICY/POINT/VICTIM/WAY has one of these texts", [""])
  .option("--lanes <n>", "deployments side by side", wholeNumber, 4)
  .option("--markdown <file>", "write the tables there as well")
  .option("--list", "print the names of the cells and run none", false)
  .parse()
  .opts<Options>();

function chosenCells(): Cell[] {
  const policies: Policy[] =
    options.policy === "both" ? ["foreground", "background"] : [options.policy];
  const cells = allCells(policies).filter(({ name }) =>
    options.only.some((text) => name.includes(text)),
  );
  const count = options.kills === 0 ? cells.length : options.kills;
  return drawCells(cells, count, options.seed, isOwnKill);
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

function tablesOf(results: readonly CellResult[]): string {
  const policies = [...new Set(results.map(({ cell }) => cell.policy))].sort().toReversed();
  return policies
    .map((policy) =>
      [`## ${policy}`, totalsTable(totals(results, policy)), matrixTable(results, policy)].join(
        "\n\n",
      ),
    )
    .join("\n\n");
}

function sayHowToRerun(broken: readonly CellResult[], logFolder: string): void {
  for (const { cell, problems } of broken) {
    say(`\n${cell.name}`);
    for (const { breach, detail } of problems) say(`  ${breach}: ${detail}`);
    say(`  npm run crash -- --seed ${options.seed} --only "${cell.name}"`);
  }
  if (broken.length > 0) say(`\nLogs: ${logFolder}`);
}

endWithChildren();
const cells = chosenCells();
if (options.list) {
  const names = cells.map(({ name }) => `${name}\n`).join("");
  // A pipe takes a long list piece by piece.
  await new Promise((written) => process.stdout.write(names, written));
  process.exit();
}
const folder = await mkdtemp(join(tmpdir(), "turnkeeper-crash-run-"));
const logFolder = join(tmpdir(), `turnkeeper-crash-logs-${process.pid}`);
const workflowBundle = join(folder, "workflows.js");
await writeWorkflowBundle(workflowBundle);
const startedAt = performance.now();
let done = 0;
say(`${cells.length} kills, seed ${options.seed}, ${options.lanes} at a time`);
const results = await runMatrix({
  cells,
  seed: options.seed,
  lanes: Math.min(options.lanes, cells.length),
  lane: {
    temporalBinary: await installTemporal(),
    workflowBundle,
    workers: 2,
    gateways: 2,
    environment: laneEnvironment,
  },
  logFolder,
  onResult({ cell, problems, recoverMs, resumeMs, inside }) {
    const elapsed = ((performance.now() - startedAt) / 1_000).toFixed(0).padStart(5);
    const outcome =
      problems.length === 0
        ? `ok, gone on with after ${seconds(resumeMs)} s, ended after ${seconds(recoverMs)} s (${inside})`
        : `BROKEN ${problems.map(({ breach, detail }) => `${breach}: ${detail}`).join("; ")}`;
    say(`[${elapsed} s] ${++done}/${cells.length} ${cell.name}: ${outcome}`);
  },
});
const tables = tablesOf(results);
console.log(tables);
if (options.markdown !== undefined) await writeFile(options.markdown, `${tables}\n`);
await rm(folder, { recursive: true });
const broken = results.filter(({ problems }) => problems.length > 0);
sayHowToRerun(broken, logFolder);
const policies = [...new Set(cells.map(({ policy }) => policy))];
const isKept = policies.every((policy) =>
  totals(results, policy).every((each) => each.isKept !== false),
);
process.exit(isKept ? 0 : 1);
