import { fork, spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { installTemporal } from "../setup/temporal.mjs";
import { anyFreePort } from "../src/dev/ports.ts";
import { startTemporalServer } from "../src/dev/temporalServer.ts";
import type { TemporalServer } from "../src/dev/temporalServer.ts";
import { startPostgres } from "../test/setup/postgresServer.ts";
import type { PostgresServer } from "../test/setup/postgresServer.ts";
import { nodeFlags } from "../test/setup/workerProcess.ts";

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));

/** The servers that everything in one run of the bench shares. */
export interface Environment {
  temporal: TemporalServer;
  postgres: PostgresServer;
  openaiBaseUrl: string;
  /**
   * Resolves when the provider next sees the connection of a call closed whose input speaks of a
   * cancel, with the time of it in milliseconds since 1970.
   */
  cancelledCallClosed(): Promise<number>;
  close(): Promise<void>;
}

export async function startEnvironment(): Promise<Environment> {
  const binary = await installTemporal();
  const temporal = await startTemporalServer({ binary });
  const postgres = await startPostgres();
  const simulator = fork(path("./simulatorProcess.ts"));
  const [openaiBaseUrl] = (await once(simulator, "message")) as [string];
  return {
    temporal,
    postgres,
    openaiBaseUrl,
    async cancelledCallClosed() {
      const [closedAtMs] = (await once(simulator, "message")) as [number];
      return closedAtMs;
    },
    async close() {
      simulator.disconnect();
      await temporal.stop();
      await postgres.stop();
      await postgres.remove();
    },
  };
}

/** A Turnkeeper process of its own, with what the operating system knows of it. */
export interface Role {
  url: string;
  cpuMs(): Promise<number>;
  residentMb(): Promise<number>;
  stop(): Promise<void>;
}

export async function startRole(
  role: "worker" | "gateway" | "serve",
  environment: Environment,
  databaseUrl: string,
  workflowBundle: string,
): Promise<Role> {
  const port = await anyFreePort();
  const child = spawn(process.execPath, [...nodeFlags, path("../src/cli.ts"), role], {
    env: {
      PATH: process.env["PATH"],
      HOME: process.env["HOME"],
      DATABASE_URL: databaseUrl,
      TEMPORAL_ADDRESS: environment.temporal.address,
      OPENAI_BASE_URL: environment.openaiBaseUrl,
      OPENAI_API_KEY: "sk-simulated",
      TURNKEEPER_PORT: String(port),
      TURNKEEPER_WORKFLOW_BUNDLE: workflowBundle,
    },
    stdio: ["ignore", "ignore", "pipe"],
  });
  await started(child, `${role} started`);
  return {
    url: `http://127.0.0.1:${port}`,
    cpuMs: () => cpuMsOf(child.pid as number),
    residentMb: () => residentMbOf(child.pid as number),
    async stop() {
      child.kill("SIGTERM");
      await once(child, "exit");
    },
  };
}

async function started(child: ChildProcess, message: string): Promise<void> {
  const lines: string[] = [];
  const output = createInterface({ input: child.stderr as NodeJS.ReadableStream });
  for await (const line of output) {
    lines.push(line);
    if (line.includes(message)) {
      child.stderr?.resume();
      return;
    }
  }
  throw new Error(`A process ended before it said '${message}':\n${lines.join("\n")}`);
}

/** User and system time so far; Linux counts in ticks of 10 ms (proc(5)). */
async function cpuMsOf(pid: number): Promise<number> {
  const tickMs = 10;
  const fields = (await readFile(`/proc/${pid}/stat`, "utf8")).split(") ")[1]?.split(" ") ?? [];
  const [userField, systemField] = [11, 12];
  return (Number(fields[userField]) + Number(fields[systemField])) * tickMs;
}

export async function residentMbOf(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  const kilobytes = Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]);
  return kilobytes / 1024;
}
