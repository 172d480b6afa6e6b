import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isRunning, processIdentity } from "./processIdentity.mjs";

/**
 * A lock between processes that a kill -9 of its holder leaves free.
 *
 * The lock is a folder. Whoever wants it puts a claim of its own there, under a name nobody else
 * uses, and then looks for other claims: it holds the lock if there are none by living processes.
 * Two that claim at once both see each other, withdraw, and try again after a random pause. As no
 * name is ever used twice, removing the claim of a dead process can never remove another one's.
 *
 * @typedef {import("./processIdentity.mjs").ProcessIdentity & { since: string }} Claim
 * @typedef {{ release(): Promise<void> }} Lock
 */

/** How long two processes that claim at once may take to agree. */
const settleMs = 400;
const firstPauseMs = 60;
const longestPauseMs = 1_000;

export class LockHeldError extends Error {
  /**
   * @param {string} folder
   * @param {Claim} holder
   */
  constructor(folder, holder) {
    super(`${folder} is held by process ${holder.pid} since ${holder.since}`);
    this.name = "LockHeldError";
    this.holder = holder;
  }
}

/**
 * @param {string} folder the lock's own folder; made if missing, and left behind
 * @param {{ waitMs?: number }} [options] `waitMs`: how long to wait for another holder; 0 by default
 * @returns {Promise<Lock>}
 * @throws {LockHeldError} when a living process still holds it after `waitMs`
 */
export async function acquireLock(folder, { waitMs = 0 } = {}) {
  await mkdir(folder, { recursive: true });
  const started = Date.now();
  const deadline = started + Math.max(waitMs, settleMs);
  for (;;) {
    const holder = (await otherClaims(folder))[0] ?? (await claim(folder));
    if ("release" in holder) return holder;
    if (Date.now() > deadline) throw new LockHeldError(folder, holder);
    const pauseMs = Math.min(firstPauseMs + (Date.now() - started) / 10, longestPauseMs);
    await sleep(Math.random() * pauseMs);
  }
}

/**
 * @param {string} folder
 * @returns {Promise<Lock | Claim>} the lock, or the claim of another process that is in the way
 */
async function claim(folder) {
  const own = join(folder, `${randomUUID()}.json`);
  const identity = processIdentity(process.pid);
  await writeFile(`${own}.new`, JSON.stringify({ ...identity, since: new Date().toISOString() }));
  await rename(`${own}.new`, own); // a claim is never seen half written
  const other = (await otherClaims(folder, own))[0];
  if (!other) return { release: () => rm(own, { force: true }) };
  await rm(own, { force: true });
  return other;
}

/**
 * The claims of living processes; those of dead ones are removed.
 *
 * @param {string} folder
 * @param {string} [own]
 * @returns {Promise<Claim[]>}
 */
async function otherClaims(folder, own) {
  /** @type {Claim[]} */
  const claims = [];
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    if (!name.endsWith(".json") || path === own) continue;
    const text = await readFile(path, "utf8").catch(() => undefined);
    if (text === undefined) continue; // withdrawn meanwhile
    const claim = parseClaim(text);
    if (claim && isRunning(claim)) claims.push(claim);
    else await rm(path, { force: true });
  }
  return claims;
}

/**
 * A power failure can leave an empty file under the final name.
 *
 * @param {string} text
 * @returns {Claim | undefined}
 */
function parseClaim(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
