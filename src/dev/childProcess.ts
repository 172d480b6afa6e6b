import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess, SpawnOptions } from "node:child_process";
import { once } from "node:events";

/** How a child process ended. */
export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A server that this process started and answers for. */
export interface ServerProcess {
  pid: number;
  /** Settles when the process has ended, for whatever reason. */
  exited: Promise<Exit>;
  /**
   * Asks the process to end with `signal`, and kills it when it has not ended after `graceMs`.
   * Does nothing when it has ended already.
   */
  stop(signal: NodeJS.Signals, graceMs: number): Promise<Exit>;
}

/**
 * Starts a server that outlives a Ctrl-C in the terminal, so that this process can stop its parts
 * in order, but does not outlive this process, even when that is killed with SIGKILL (Linux with
 * util-linux; elsewhere it is left behind, and whoever starts the next one has to look for it).
 *
 * @param deathSignal what the server gets when this process has died
 * @param onLine called with each line it prints
 * @throws when the program cannot be started
 */
export async function startServer(
  program: string,
  args: readonly string[],
  options: SpawnOptions & { deathSignal: "KILL" | "QUIT" },
  onLine: (line: string) => void,
): Promise<ServerProcess> {
  const { deathSignal, ...spawnOptions } = options;
  const [command, ...rest] = [...boundToParent(deathSignal), program, ...args];
  const child = spawn(command!, rest, {
    ...spawnOptions,
    detached: true, // a session of its own: the terminal's SIGINT and SIGHUP do not reach it
    stdio: ["ignore", "pipe", "pipe"],
  });
  await once(child, "spawn");
  readLines(child, onLine);
  const exited = new Promise<Exit>((resolve) => {
    child.once("exit", (code, signal) => resolve({ code, signal }));
  });
  return {
    pid: child.pid!,
    exited,
    stop: (signal, graceMs) => stop(child, exited, signal, graceMs),
  };
}

async function stop(
  child: ChildProcess,
  exited: Promise<Exit>,
  signal: NodeJS.Signals,
  graceMs: number,
): Promise<Exit> {
  child.kill(signal);
  const timer = setTimeout(() => child.kill("SIGKILL"), graceMs);
  const exit = await exited;
  clearTimeout(timer);
  return exit;
}

/**
 * setpriv replaces itself by the program and keeps its pid; the kernel sends the signal when the
 * thread that started it ends (prctl(2), PR_SET_PDEATHSIG).
 */
function boundToParent(deathSignal: string): string[] {
  setprivWorks ??=
    spawnSync("setpriv", ["--pdeathsig", "KILL", "true"], { stdio: "ignore" }).status === 0;
  return setprivWorks ? ["setpriv", "--pdeathsig", deathSignal, "--"] : [];
}

let setprivWorks: boolean | undefined;

function readLines(child: ChildProcess, onLine: (line: string) => void): void {
  for (const stream of [child.stdout!, child.stderr!]) {
    let rest = "";
    stream.setEncoding("utf8");
    stream.on("data", (chunk: string) => {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop()!;
      for (const line of lines) onLine(line);
    });
  }
}
