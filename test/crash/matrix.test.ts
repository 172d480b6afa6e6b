import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, inject, test } from "vitest";
import { allCells, drawCells } from "../../crash/cells.ts";
import { laneEnvironment } from "../../crash/lane.ts";
import { runMatrix } from "../../crash/matrix.ts";
import { ways } from "../../crash/ways.ts";
import { describeWith, sharedTemporal } from "../setup/servers.ts";

const seed = 1;
/** What the matrix has found once. */
const once = new Set([
  "background/before the ending transaction/worker/SIGSTOP",
  "foreground/after a notification of events/worker/SIGSTOP",
]);
const lanes = 3;
const hangGuardMs = 900_000;

describeWith(["postgres", "temporal"], "the crash matrix in short", () => {
  test(
    "keeps every turn whole, however a process of it fails",
    async () => {
      const folder = await mkdtemp(join(tmpdir(), "turnkeeper-crash-test-"));
      const all = allCells(["foreground", "background"]);
      // Those in one deployment, because the other one takes as long to start as several cells.
      const apart = all.filter(({ point }) => point.scenario.deployment === "apart");
      const drawn = drawCells(apart, ways.length, seed);
      // One of each way, at as many points.
      expect(new Set(drawn.map(({ way }) => way)).size).toBe(ways.length);
      expect(new Set(drawn.map(({ point }) => point)).size).toBe(ways.length);
      const cells = [...new Set([...drawn, ...all.filter(({ name }) => once.has(name))])];
      const results = await runMatrix({
        cells,
        seed,
        lanes,
        lane: {
          temporalBinary: sharedTemporal().binary,
          workflowBundle: inject("workflowBundle"),
          workers: 2,
          gateways: 2,
          environment: laneEnvironment,
        },
        logFolder: join(folder, "logs"),
        onResult: () => {},
      });
      const broken = results
        .filter(({ problems }) => problems.length > 0)
        .map(({ cell, problems }) => ({ cell: cell.name, problems }));
      expect(broken).toEqual([]);
      expect(results).toHaveLength(cells.length);
      await rm(folder, { recursive: true });
    },
    hangGuardMs,
  );
});
