import { execFile, execFileSync } from "node:child_process";
import { chown, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { Client } from "pg";
import { installPostgres } from "../../setup/postgres.mjs";
import { startServer } from "../../src/dev/childProcess.ts";
import type { ServerProcess } from "../../src/dev/childProcess.ts";
import { anyFreePort, loopback } from "../../src/dev/ports.ts";

const run = promisify(execFile);
const readyTimeoutMs = 30_000;
const stopGraceMs = 20_000;
const retryMs = 25;
const keptLogLines = 40;

/** PostgreSQL refuses to run as root, so root lends it to one of these. */
const unprivilegedUsers = ["postgres", "nobody"];

/** A PostgreSQL of one's own, that a test may stop, crash and start again. */
export interface PostgresServer {
  port: number;
  /** The connection URL of a database; of `postgres` if none is named. */
  url(database?: string): string;
  /** Starts it again on the same port and data after a stop or a crash. */
  start(): Promise<void>;
  /** A fast shutdown: connections are closed, transactions rolled back. */
  stop(): Promise<void>;
  /** A crash: every process of the server ends at once, nothing is written any more. */
  crash(): Promise<void>;
  /** Stops every process of the server from running (Linux), until `thaw`. */
  freeze(): Promise<void>;
  thaw(): Promise<void>;
  /** Stops it and removes its data. */
  remove(): Promise<void>;
}

export interface PostgresOptions {
  /** Any free one if absent. */
  port?: number;
  /** Server settings by name, over the ones below. */
  settings?: Record<string, string>;
}

interface User {
  uid: number;
  gid: number;
}

/**
 * Starts a PostgreSQL with pgvector on loopback, with an empty data folder and `fsync` on.
 *
 * @throws naming the ways to get a PostgreSQL when there is none
 */
export async function startPostgres(options: PostgresOptions = {}): Promise<PostgresServer> {
  const bin = await installPostgres();
  const user = unprivilegedUser();
  // A socket's path may have 103 bytes at most on macOS, whose temporary folder is long already.
  const folder = await mkdtemp(join(tmpdir(), "tkpg-"));
  if (user) await chown(folder, user.uid, user.gid);
  await createCluster(bin, folder, user);
  const port = options.port ?? (await anyFreePort());
  const settings = { ...defaultSettings(folder, port), ...options.settings };
  const url = (database = "postgres"): string =>
    `postgres://postgres@${loopback}:${port}/${database}`;
  let server: ServerProcess | undefined;
  const stop = async (signal: "SIGINT" | "SIGQUIT"): Promise<void> => {
    await server?.stop(signal, stopGraceMs);
    server = undefined;
  };
  const start = async (): Promise<void> => {
    server ??= await startPostmaster(bin, folder, settings, user, url());
  };
  const signalAll = async (signal: NodeJS.Signals): Promise<void> => {
    if (server === undefined) return;
    for (const pid of [server.pid, ...(await childrenOf(server.pid))]) {
      try {
        process.kill(pid, signal);
      } catch {
        continue; // a backend that has ended meanwhile
      }
    }
  };
  await start();
  return {
    port,
    url,
    start,
    stop: () => stop("SIGINT"),
    crash: () => stop("SIGQUIT"),
    freeze: () => signalAll("SIGSTOP"),
    thaw: () => signalAll("SIGCONT"),
    remove: async () => {
      await stop("SIGINT");
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Each backend leads a session of its own, so no process group has them all (proc(5)). */
async function childrenOf(parent: number): Promise<number[]> {
  const pids = (await readdir("/proc")).map(Number).filter((pid) => pid > 0);
  const parents = await Promise.all(pids.map(parentOf));
  return pids.filter((_, at) => parents[at] === parent);
}

async function parentOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  const [, parent] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(parent);
}

/** `trust`: the server is reachable from this machine only and holds nothing but test data. */
async function createCluster(bin: string, folder: string, user: User | undefined): Promise<void> {
  const args = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"];
  await run(join(bin, "initdb"), [...args, "--pgdata", join(folder, "data")], {
    ...user,
    cwd: folder,
    env: postgresEnvironment(),
  });
}

function defaultSettings(folder: string, port: number): Record<string, string> {
  return {
    listen_addresses: loopback,
    port: String(port),
    unix_socket_directories: folder,
    max_connections: "200",
    fsync: "on",
  };
}

async function startPostmaster(
  bin: string,
  folder: string,
  settings: Record<string, string>,
  user: User | undefined,
  url: string,
): Promise<ServerProcess> {
  const lastLines: string[] = [];
  const args = ["-D", join(folder, "data")];
  for (const [name, value] of Object.entries(settings)) args.push("-c", `${name}=${value}`);
  const server = await startServer(
    join(bin, "postgres"),
    args,
    // An immediate shutdown: the server's own processes end too, as they do after a crash.
    { ...user, cwd: folder, env: postgresEnvironment(), deathSignal: "QUIT" },
    (line) => {
      lastLines.push(line);
      if (lastLines.length > keptLogLines) lastLines.shift();
    },
  );
  if (await accepts(url, server)) return server;
  await server.stop("SIGQUIT", stopGraceMs);
  throw new Error(`PostgreSQL did not start:\n${lastLines.join("\n")}`);
}

async function accepts(url: string, server: ServerProcess): Promise<boolean> {
  const waiting = new AbortController();
  void server.exited.then(() => waiting.abort());
  const deadline = Date.now() + readyTimeoutMs;
  while (!waiting.signal.aborted && Date.now() < deadline) {
    if (await connects(url)) return true;
    await sleep(retryMs);
  }
  return false;
}

async function connects(url: string): Promise<boolean> {
  const client = new Client({ connectionString: url });
  try {
    await client.connect();
    return true;
  } catch {
    return false;
  } finally {
    await client.end().catch(() => {});
  }
}

/** The user's own `PG…` variables are for another server. */
function postgresEnvironment(): NodeJS.ProcessEnv {
  return { PATH: process.env["PATH"], LC_ALL: "C", TZ: "UTC" };
}

function unprivilegedUser(): User | undefined {
  if (process.getuid?.() !== 0) return undefined;
  for (const name of unprivilegedUsers) {
    try {
      const id = (flag: string): number =>
        Number(execFileSync("id", [flag, name], { stdio: ["ignore", "pipe", "ignore"] }));
      return { uid: id("-u"), gid: id("-g") };
    } catch {
      continue; // no such user here
    }
  }
  throw new Error(
    `PostgreSQL cannot run as root, and there is no user ${unprivilegedUsers.join(" or ")}`,
  );
}
