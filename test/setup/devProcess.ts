import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { stepToFreePort } from "../../src/dev/ports.ts";

const cli = fileURLToPath(new URL("../../src/cli.ts", import.meta.url));
/** Away from the ports that a developer's own `npm start` uses. */
const firstPort = 17_823;

/** A `turnkeeper dev` in a process of its own. */
export interface DevProcess {
  apiUrl: string;
  temporalUiUrl: string;
  taskQueue: string;
  temporalAddress: string;
  /** Everything it has printed. */
  output(): string;
  /** Waits until a line of it has this part. */
  said(part: string): Promise<void>;
  /** Only on a terminal: keys as they are, such as `\r` for Enter. */
  type(keys: string): void;
  signal(signal: NodeJS.Signals): void;
  exited: Promise<number | null>;
}

const living = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of living) child.kill("SIGKILL");
});

/** Kills what a failed test has left running. */
export async function killDevProcesses(): Promise<void> {
  const ends = [...living].map((child) => once(child, "close"));
  for (const child of living) child.kill("SIGKILL");
  await Promise.all(ends);
}

/** Whether there is the `script` of util-linux, which runs a command on a terminal of its own. */
export const hasTerminal = spawnSync("script", ["--version"], { stdio: "ignore" }).status === 0;

function spawnDev(
  folder: string,
  args: string[],
  environment: Record<string, string>,
  isOnTerminal = false,
) {
  const command = [process.execPath, cli, "dev", ...args];
  const quoted = command.map((word) => `'${word}'`).join(" ");
  const [program = "", ...rest] = isOnTerminal
    ? ["script", "--quiet", "--return", "--command", quoted, "/dev/null"]
    : command;
  const child = spawn(program, rest, {
    env: {
      PATH: process.env["PATH"],
      HOME: process.env["HOME"],
      TURNKEEPER_FOLDER: folder,
      TURNKEEPER_JANITOR_ROUND_MS: "500",
      TURNKEEPER_JANITOR_PATIENCE_MS: "1000",
      ...environment,
    },
    stdio: [isOnTerminal ? "pipe" : "ignore", "pipe", "pipe"],
  });
  living.add(child);
  const lines: string[] = [];
  const listeners = new Set<(line: string) => void>();
  for (const stream of [child.stdout, child.stderr]) {
    if (stream === null) continue;
    createInterface({ input: stream }).on("line", (line) => {
      lines.push(line);
      for (const listener of listeners) listener(line);
    });
  }
  const exited = once(child, "close").then(([code]) => {
    living.delete(child);
    return code as number | null;
  });
  return { child, lines, listeners, exited };
}

/** Runs `turnkeeper dev` to its end. */
export async function runDev(
  folder: string,
  args: string[],
  environment: Record<string, string> = {},
): Promise<{ code: number | null; output: string }> {
  const { lines, exited } = spawnDev(folder, args, environment);
  return { code: await exited, output: lines.join("\n") };
}

/** Starts `turnkeeper dev` and waits until it is ready. */
export async function startDev(
  folder: string,
  environment: Record<string, string> = {},
  isOnTerminal = false,
): Promise<DevProcess> {
  const port = await stepToFreePort(firstPort);
  const args = ["--port", `${port}`];
  const { child, lines, listeners, exited } = spawnDev(folder, args, environment, isOnTerminal);
  const found = (pattern: RegExp) => lines.map((line) => pattern.exec(line)?.[1]).find(Boolean);
  const addressOf = (name: string) => found(new RegExp(`^${name} +(http\\S+)`));
  const ended = exited.then((code) => {
    throw new Error(`It ended with ${code}:\n${lines.join("\n")}`);
  });
  ended.catch(() => {});
  const until = (isSo: () => boolean) => {
    const so = new Promise<void>((resolve) => {
      const look = () => {
        if (isSo()) resolve();
      };
      listeners.add(look);
      look();
    });
    return Promise.race([so, ended]);
  };
  await until(() => addressOf("Temporal UI") !== undefined);
  return {
    apiUrl: addressOf("Responses API") as string,
    temporalUiUrl: addressOf("Temporal UI") as string,
    taskQueue: found(/^Task queue +(\S+), /) as string,
    temporalAddress: found(/^Task queue .*Temporal at (\S+)/) as string,
    output: () => lines.join("\n"),
    said: (part) => until(() => lines.some((line) => line.includes(part))),
    type: (keys) => void child.stdin?.write(keys),
    signal: (signal) => void child.kill(signal),
    exited,
  };
}
