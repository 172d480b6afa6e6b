import { statSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, isAbsolute, join } from "node:path";

/**
 * Where downloaded and built programs are kept, outside of every checkout, so that a second clone
 * does not fetch them again.
 *
 * `$XDG_CACHE_HOME/turnkeeper`, else `~/Library/Caches/turnkeeper` on macOS and
 * `~/.cache/turnkeeper` elsewhere (XDG Base Directory Specification 0.8; a relative path in the
 * variable is to be ignored).
 *
 * @param {NodeJS.ProcessEnv} [environment]
 * @returns {string}
 */
export function cacheFolder(environment = process.env) {
  const configured = environment["XDG_CACHE_HOME"];
  if (configured && isAbsolute(configured)) return join(configured, "turnkeeper");
  const home = environment["HOME"] || homedir();
  const caches = process.platform === "darwin" ? ["Library", "Caches"] : [".cache"];
  return join(home, ...caches, "turnkeeper");
}

/**
 * The cache folder for programs that root has to start as another user (PostgreSQL refuses root).
 * Root's own home is closed to others, so root keeps these in the system's cache folder.
 *
 * @param {NodeJS.ProcessEnv} [environment]
 * @returns {string}
 */
export function sharedCacheFolder(environment = process.env) {
  const own = cacheFolder(environment);
  if (process.getuid?.() !== 0 || isOpenToOthers(own)) return own;
  return process.platform === "darwin" ? "/Library/Caches/turnkeeper" : "/var/cache/turnkeeper";
}

/**
 * Whether every folder on the way to `path` that exists lets other users through.
 *
 * @param {string} path
 * @returns {boolean}
 */
export function isOpenToOthers(path) {
  for (let folder = path; ; folder = dirname(folder)) {
    const mode = statSync(folder, { throwIfNoEntry: false })?.mode;
    if (mode !== undefined && (mode & 0o001) === 0) return false;
    if (folder === dirname(folder)) return true;
  }
}
