import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { installTemporal } from "../../setup/temporal.mjs";
import { startTemporalServer } from "../../src/dev/temporalServer.ts";
import { startPostgres } from "./postgresServer.ts";
import { dropRunDatabases } from "./runDatabases.ts";
import { writeWorkflowBundle } from "./workflowBundle.ts";

/** A server that all tests share, or why there is none. */
export type Shared<T> = T | { missing: string };

declare module "vitest" {
  export interface ProvidedContext {
    /** Distinguishes what this run leaves in servers that outlive it. */
    runId: string;
    postgres: Shared<{ url: string }>;
    temporal: Shared<{ address: string; binary: string }>;
    /** A file with the workflows, of which a worker would make one of its own at each start. */
    workflowBundle: string;
  }
}

type Stop = () => Promise<void>;

/**
 * Starts one PostgreSQL and one Temporal server for all test files, and bundles the workflows for them.
 * What cannot be had here is provided as missing, with the reason, and the tests that need it are
 * skipped; under `CI` it fails the run.
 */
export default async function startSharedServers(project: TestProject): Promise<Stop> {
  const runId = randomBytes(4).toString("hex");
  project.provide("runId", runId);
  const started = await Promise.allSettled([
    shareWorkflowBundle(project),
    orMissing(
      () => sharePostgres(project, runId),
      (missing) => project.provide("postgres", { missing }),
    ),
    orMissing(
      () => shareTemporal(project),
      (missing) => project.provide("temporal", { missing }),
    ),
  ]);
  const stop = async (): Promise<void> => {
    await Promise.all(started.flatMap((start) => ("value" in start ? [start.value()] : [])));
  };
  const failure = started.find((start) => start.status === "rejected");
  if (!failure) return stop;
  await stop();
  throw failure.reason;
}

async function sharePostgres(project: TestProject, runId: string): Promise<Stop> {
  const given = process.env["TEST_DATABASE_URL"];
  if (given) {
    project.provide("postgres", { url: given });
    return () => dropRunDatabases(given, runId);
  }
  const server = await startPostgres();
  project.provide("postgres", { url: server.url() });
  return () => server.remove();
}

async function shareTemporal(project: TestProject): Promise<Stop> {
  const binary = await installTemporal();
  const server = await startTemporalServer({ binary });
  project.provide("temporal", { address: server.address, binary });
  return () => server.stop();
}

async function shareWorkflowBundle(project: TestProject): Promise<Stop> {
  const folder = await mkdtemp(join(tmpdir(), "turnkeeper-workflows-"));
  const path = join(folder, "workflows.js");
  await writeWorkflowBundle(path);
  project.provide("workflowBundle", path);
  return () => rm(folder, { recursive: true });
}

async function orMissing(
  start: () => Promise<Stop>,
  tell: (missing: string) => void,
): Promise<Stop> {
  try {
    return await start();
  } catch (error) {
    if (process.env["CI"]) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    process.stderr.write(`${reason}\nThe tests that need it are skipped.\n`);
    tell(reason.split("\n")[0]!);
    return async () => {};
  }
}
