import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const cli = fileURLToPath(new URL("../../src/cli.ts", import.meta.url));

export interface WorkerProcessOptions {
  databaseUrl: string;
  temporalAddress: string;
  taskQueue: string;
  openaiBaseUrl: string;
  /** Default `worker`. */
  role?: "worker" | "serve" | "gateway" | "dev";
  environment?: Record<string, string>;
}

/** A `turnkeeper worker` in a process of its own, to be killed. */
export interface WorkerProcess {
  pid: number;
  /** Settles with its exit code when it has ended, for whatever reason; `null` after a kill. */
  exited: Promise<number | null>;
  /** The last lines of its log. */
  tail(): readonly string[];
  /** Waits until a line of its log has this part. */
  said(part: string): Promise<void>;
  signal(signal: NodeJS.Signals): void;
  /** Kills without a chance to clean up, and waits until the process is gone. */
  kill(): Promise<void>;
  /** Asks for an orderly end. Returns the exit code. */
  stop(): Promise<number | null>;
}

const keptLines = 1_000;

const living = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of living) child.kill("SIGKILL");
});

/** With what the image starts Node. */
export const nodeFlags = ["--max-semi-space-size=16"];

/**
 * Starts a worker and waits until it has said `message`.
 *
 * @param message a part of a line of its log; by default the one that it runs.
 */
export async function startWorkerProcess(
  options: WorkerProcessOptions,
  message = `${options.role ?? "worker"} started`,
): Promise<WorkerProcess> {
  const child = spawn(process.execPath, [...nodeFlags, cli, options.role ?? "worker"], {
    env: {
      PATH: process.env["PATH"],
      HOME: process.env["HOME"],
      DATABASE_URL: options.databaseUrl,
      TEMPORAL_ADDRESS: options.temporalAddress,
      TURNKEEPER_TASK_QUEUE: options.taskQueue,
      OPENAI_BASE_URL: options.openaiBaseUrl,
      OPENAI_API_KEY: "sk-simulated",
      TURNKEEPER_JANITOR_ROUND_MS: "500",
      TURNKEEPER_JANITOR_PATIENCE_MS: "1000",
      ...options.environment,
    },
    stdio: ["ignore", "ignore", "pipe"],
  });
  living.add(child);
  const exited = once(child, "exit").then(([code]) => {
    living.delete(child);
    return code as number | null;
  });
  const lines: string[] = [];
  const output = createInterface({ input: child.stderr });
  output.on("line", (line) => {
    lines.push(line);
    if (lines.length > keptLines) lines.shift();
  });
  const said = (part: string) =>
    new Promise<void>((resolve, reject) => {
      const look = () => {
        if (lines.some((line) => line.includes(part))) resolve();
      };
      output.on("line", look);
      look();
      void exited.then((code) =>
        reject(new Error(`The worker ended with ${code} before '${part}':\n${lines.join("\n")}`)),
      );
    });
  await said(message);
  return {
    pid: child.pid as number,
    exited,
    tail: () => lines,
    said,
    signal: (signal) => void child.kill(signal),
    async kill() {
      child.kill("SIGKILL");
      await exited;
    },
    stop() {
      child.kill("SIGTERM");
      return exited;
    },
  };
}
