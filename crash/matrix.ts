import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { noResult, runCell } from "./cell.ts";
import type { CellResult } from "./cell.ts";
import type { Cell } from "./cells.ts";
import { Lane } from "./lane.ts";
import type { Deployment, LaneOptions } from "./lane.ts";

export interface MatrixOptions {
  cells: readonly Cell[];
  seed: number;
  /** Deployments that run cells side by side. */
  lanes: number;
  lane: LaneOptions;
  /** Where the logs of the processes go when a bar was broken. */
  logFolder: string;
  onResult: (result: CellResult) => void;
}

/** Far above what a cell takes with all its own limits. */
const hangMs = 300_000;

/** Runs all cells. A lane in which a bar was broken is replaced, so that the next cell starts clean. */
export async function runMatrix(options: MatrixOptions): Promise<CellResult[]> {
  // A lane can be used again by cells of the same deployment only.
  const left = options.cells.toSorted((one, other) =>
    deploymentOf(one).localeCompare(deploymentOf(other)),
  );
  const results: CellResult[] = [];
  const run = async (): Promise<void> => {
    let lane: Lane | null = null;
    for (let cell = left.shift(); cell !== undefined; cell = left.shift()) {
      const deployment = deploymentOf(cell);
      if (lane !== null && lane.deployment !== deployment) {
        await lane.close();
        lane = null;
      }
      lane ??= await Lane.open({ ...options.lane, deployment });
      const result = await orHang(runCell(lane, cell, options.seed), cell);
      results.push(result);
      options.onResult(result);
      if (result.problems.length === 0) continue;
      await keepLogs(lane, result, options.logFolder);
      await lane.close();
      lane = null;
    }
    await lane?.close();
  };
  await Promise.all(Array.from({ length: options.lanes }, run));
  return results;
}

function deploymentOf({ point }: Cell): Deployment {
  return point.scenario.deployment;
}

async function orHang(running: Promise<CellResult>, cell: Cell): Promise<CellResult> {
  const controller = new AbortController();
  const hung = delay(hangMs, null, { signal: controller.signal });
  hung.catch(() => {});
  const broken = (detail: string): CellResult => ({
    ...noResult(cell),
    problems: [{ breach: "other", detail }],
  });
  try {
    return (await Promise.race([running, hung])) ?? broken("the harness hung");
  } catch (error) {
    return broken(`the harness failed: ${error instanceof Error ? error.stack : String(error)}`);
  } finally {
    controller.abort();
  }
}

async function keepLogs(lane: Lane, { cell, problems }: CellResult, folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  const lines = [
    ...problems.map(({ breach, detail }) => `${breach}: ${detail}`),
    ...lane.processes.flatMap((process) => [`\n${process.name}`, ...process.tail()]),
  ];
  const file = join(folder, `${cell.name.replaceAll(/[^\w-]+/g, "_")}.log`);
  await writeFile(file, `${lines.join("\n")}\n`);
}
