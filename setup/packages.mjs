import { readFileSync } from "node:fs";
import { basename, delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { findOnPath } from "./onPath.mjs";
import { withProgress } from "./progress.mjs";
import { runCommand } from "./runCommand.mjs";

/** @typedef {Record<string, { version?: string, optional?: boolean, link?: boolean }>} Packages */

const checkout = fileURLToPath(new URL("..", import.meta.url));

/** openai and vitest ask for it; the sources are run as they are, without a build. */
const oldestPackagedNodeMajor = 22;

/**
 * Installs what package-lock.json names, if it is not there yet, and makes sure that the Node among
 * it runs: npm's scripts use that one, whatever the system has.
 *
 * @param {string} [folder] the checkout
 * @throws {Error} with npm's own words, or with what to do about scripts that npm did not run
 */
export async function installPackages(folder = checkout) {
  if (!isInstalled(folder)) {
    await withProgress("Installing packages", () => runNpmInstall(folder));
  }
  await checkPackagedNode(folder);
}

/**
 * Compares package-lock.json with npm's own record of what it has put into node_modules, which it
 * writes last. Optional packages may be missing: most are for other platforms.
 *
 * @param {string} folder
 */
function isInstalled(folder) {
  const installed = readLock(join(folder, "node_modules", ".package-lock.json"));
  const wanted = readLock(join(folder, "package-lock.json"));
  if (!installed || !wanted) return false;
  return Object.entries(wanted).every(([path, { version, optional }]) => {
    const found = installed[path];
    return path === "" || (found ? found.version === version : optional === true);
  });
}

/**
 * @param {string} path
 * @returns {Packages | undefined}
 */
function readLock(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8")).packages;
  } catch {
    return undefined;
  }
}

/**
 * Not `npm ci`: that refuses a lock file which lacks the optional packages of other platforms, and
 * npm leaves them out when its registry does not have them. `--no-save` keeps the lock file as it is.
 *
 * @param {string} folder
 */
async function runNpmInstall(folder) {
  const env = { ...process.env, PATH: pathOutside(folder) };
  const options = ["--no-save", "--include=dev", "--no-audit", "--no-fund", "--loglevel=error"];
  const [program = "npm", ...script] = npmCommand(env);
  await runCommand(program, [...script, "install", ...options], { cwd: folder, env });
}

/**
 * PATH without node_modules: npm replaces the Node in there while it runs.
 *
 * @param {string} folder
 */
function pathOutside(folder) {
  const inside = join(folder, "node_modules");
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  return folders.filter((entry) => !entry.startsWith(inside)).join(delimiter);
}

/**
 * The npm that runs this, if one does.
 *
 * @param {NodeJS.ProcessEnv} environment
 */
function npmCommand(environment) {
  const script = process.env["npm_execpath"];
  if (!script || !basename(script).startsWith("npm")) return ["npm"];
  return [findOnPath("node", environment) ?? process.execPath, script];
}

/** @param {string} folder */
async function checkPackagedNode(folder) {
  const node = join(folder, "node_modules", ".bin", "node");
  const version = await runCommand(node, ["--version"]).catch(() => undefined);
  const major = Number(/^v(\d+)/.exec(version ?? "")?.[1] ?? 0);
  if (major >= oldestPackagedNodeMajor) return;
  const found = version ? `is ${version.trim()}` : "does not run";
  throw new Error(`${node} ${found}; Node ${oldestPackagedNodeMajor} or later is needed there.
The package \`node\` brings it with an install script. npm does not run those where the setting
ignore-scripts is on, or where package.json's allowScripts does not name the package. Then:
  npm rebuild node --ignore-scripts=false`);
}
