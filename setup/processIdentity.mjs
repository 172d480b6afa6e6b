import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

/**
 * A process id is used again after its process has died; together with the time of the start it
 * names one process for good.
 *
 * @typedef {{ pid: number, startedAt: string }} ProcessIdentity
 */

/**
 * @param {number} pid
 * @returns {ProcessIdentity | undefined} undefined when no such process runs
 */
export function processIdentity(pid) {
  const startedAt = process.platform === "linux" ? startFromProc(pid) : askPs(pid, "lstart=");
  return startedAt === undefined ? undefined : { pid, startedAt };
}

/**
 * @param {ProcessIdentity} identity
 * @returns {boolean}
 */
export function isRunning(identity) {
  return processIdentity(identity.pid)?.startedAt === identity.startedAt;
}

/**
 * @param {number} pid
 * @returns {string | undefined} the program and its arguments, separated by spaces
 */
export function commandLine(pid) {
  if (process.platform !== "linux") return askPs(pid, "command=");
  const text = readProc(`/proc/${pid}/cmdline`);
  return text?.replaceAll("\0", " ").trim() || undefined;
}

/**
 * Clock ticks since boot, with the boot they count from (proc(5): field 22 of `stat`; the name in
 * field 2 may itself hold spaces and brackets). A zombie has died already.
 *
 * @param {number} pid
 */
function startFromProc(pid) {
  const text = readProc(`/proc/${pid}/stat`);
  if (text === undefined) return undefined;
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return undefined;
  const boot = readProc("/proc/sys/kernel/random/boot_id")?.trim();
  return `${boot}/${fields[19]}`;
}

/** @param {string} path */
function readProc(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined; // the process is gone
  }
}

/**
 * @param {number} pid
 * @param {string} column
 */
function askPs(pid, column) {
  try {
    return execFileSync("ps", ["-o", column, "-p", String(pid)], { encoding: "utf8" }).trim();
  } catch {
    return undefined; // ps exits with 1 when no such process runs
  }
}
