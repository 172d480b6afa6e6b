import { readFile, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { commandLine, isRunning, processIdentity } from "../../setup/processIdentity.mjs";
import type { ProcessIdentity } from "../../setup/processIdentity.mjs";

const stopGraceMs = 5_000;
const pollMs = 20;

/** Notes beside the database file which process has it open. */
export async function recordServer(dbFilename: string, pid: number): Promise<void> {
  await writeFile(recordPath(dbFilename), JSON.stringify(processIdentity(pid) ?? {}));
}

/**
 * Stops a server that an earlier process was killed without stopping, as two servers must not
 * have one database file open. Only the very process on record is touched, and only if its command
 * line still names this database file.
 */
export async function stopOrphan(dbFilename: string, log: (line: string) => void): Promise<void> {
  const server = await readRecord(dbFilename);
  if (!server || !isRunning(server) || !commandLine(server.pid)?.includes(dbFilename)) return;
  log(`stopping the Temporal server that an earlier run left behind (process ${server.pid})`);
  process.kill(server.pid, "SIGTERM");
  if (await hasEnded(server, stopGraceMs)) return;
  process.kill(server.pid, "SIGKILL");
  if (await hasEnded(server, stopGraceMs)) return;
  throw new Error(`process ${server.pid} still has ${dbFilename} open and cannot be stopped`);
}

async function readRecord(dbFilename: string): Promise<ProcessIdentity | undefined> {
  try {
    return JSON.parse(await readFile(recordPath(dbFilename), "utf8")) as ProcessIdentity;
  } catch {
    return undefined; // no server was started here yet, or its record was cut short
  }
}

function recordPath(dbFilename: string): string {
  return `${dbFilename}.server.json`;
}

async function hasEnded(server: ProcessIdentity, graceMs: number): Promise<boolean> {
  const deadline = Date.now() + graceMs;
  while (isRunning(server)) {
    if (Date.now() > deadline) return false;
    await sleep(pollMs);
  }
  return true;
}
