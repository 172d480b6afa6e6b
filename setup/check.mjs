/**
 * `npm run check`: everything that can be said about the sources without running them. Warnings are
 * shown and do not fail; all checks run even if one fails.
 */
import { execFile } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const maxOutputBytes = 64 * 1024 * 1024; // a JSON report of all imports

const checkout = fileURLToPath(new URL("..", import.meta.url));
const programs = join(checkout, "node_modules", ".bin");
const folders = ["src", "setup", "test", "bench", "crash"].filter((name) =>
  existsSync(join(checkout, name)),
);

/** @type {Record<string, () => Promise<string>>} each gives what is worth showing, or throws it */
const checks = {
  types: () => tool("tsc", "--noEmit", "-p", "tsconfig.json"),
  lint: () => tool("oxlint", "--type-aware", "--format", "unix"),
  format: () => tool("oxfmt", "--list-different", "."),
  imports: checkImports,
  "dead code": () => tool("knip", "--no-progress"),
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  const started = Date.now();
  const seconds = () => `${((Date.now() - started) / 1000).toFixed(1)} s`;
  try {
    const warnings = await check();
    console.log(`check ${name}: ok (${seconds()})`);
    if (warnings) console.log(warnings);
  } catch (error) {
    failed += 1;
    console.log(`check ${name}: FAILED (${seconds()})`);
    console.log(error instanceof Error ? error.message : String(error));
  }
}
if (failed > 0) {
  console.log(`${failed} of ${Object.keys(checks).length} checks failed`);
  process.exitCode = 1;
}

/**
 * @param {string} name
 * @param {string[]} args
 * @returns {Promise<string>} what it printed
 * @throws {Error} what it printed, when it exits with an error
 */
async function tool(name, ...args) {
  // The tools are scripts that start the first Node on PATH; the system's may be too old for them.
  const env = { ...process.env, PATH: `${programs}${delimiter}${process.env["PATH"]}` };
  try {
    const options = { cwd: checkout, env, maxBuffer: maxOutputBytes };
    const { stdout } = await run(join(programs, name), args, options);
    return stdout.trim();
  } catch (error) {
    const { stdout, stderr, message } = /** @type {any} */ (error);
    throw new Error(`${stdout ?? ""}${stderr ?? ""}`.trim() || message, { cause: error });
  }
}

/**
 * Trap: with a TypeScript it does not know and without its other parser, dependency-cruiser looks
 * at no module at all and finds nothing wrong. So every source file has to be among what it saw.
 */
async function checkImports() {
  const report = await cruise();
  const seen = new Set(report.modules.map((module) => module.source));
  const unseen = folders.flatMap(sourceFiles).filter((path) => !seen.has(path));
  if (unseen.length > 0) {
    throw new Error(`dependency-cruiser did not look at ${unseen.length} files, as ${unseen[0]}`);
  }
  const { violations } = report.summary;
  const lines = violations.map(({ rule, from, to }) => `${rule.name}: ${from} -> ${to}`);
  if (lines.length > 0) throw new Error(lines.join("\n"));
  return "";
}

/**
 * @returns {Promise<import("dependency-cruiser").ICruiseResult>}
 */
async function cruise() {
  return JSON.parse(await tool("depcruise", "--output-type", "json", ...folders));
}

/**
 * @param {string} folder
 * @returns {string[]} paths from the checkout
 */
function sourceFiles(folder) {
  return readdirSync(join(checkout, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory()) return sourceFiles(path);
    return /\.(ts|mjs)$/.test(entry.name) ? [path] : [];
  });
}
