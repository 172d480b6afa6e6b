import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { cacheFolder } from "./cacheFolder.mjs";
import { download } from "./download.mjs";
import { installOnce } from "./installOnce.mjs";
import { findOnPath, isProgram } from "./onPath.mjs";
import { say, withProgress } from "./progress.mjs";
import { runCommand } from "./runCommand.mjs";

/** Later releases (seen: 1.9.1) cannot be built by `go install`: their go.mod replaces a module. */
const cliVersion = "1.5.1";

/** The first server with everything that is relied on (task priorities came last). */
const oldestServer = [1, 28];

const downloadOrigin = "https://temporal.download";

/**
 * What names a Temporal server that runs already, if anything does: the variables and the
 * configuration file that `@temporalio/envconfig` reads (its rules, version 1.24).
 *
 * @param {NodeJS.ProcessEnv} [environment]
 * @returns {string | undefined} the setting's name, for people
 */
export function configuredTemporal(environment = process.env) {
  if (environment["TEMPORAL_ADDRESS"]) return "TEMPORAL_ADDRESS";
  if (environment["TEMPORAL_PROFILE"]) return "TEMPORAL_PROFILE";
  const file = environment["TEMPORAL_CONFIG_FILE"] || defaultConfigFile(environment);
  if (!existsSync(file)) return undefined;
  return namesAddress(readFileSync(file, "utf8")) ? file : undefined;
}

/**
 * The `temporal` program, if it is here: on PATH, else in the cache.
 *
 * @param {NodeJS.ProcessEnv} [environment]
 * @returns {Promise<string | undefined>}
 */
export async function findTemporal(environment = process.env) {
  const onPath = findOnPath("temporal", environment);
  if (onPath && (await isRecent(onPath))) return onPath;
  const cached = join(cachedFolder(environment), "temporal");
  return isProgram(cached) ? cached : undefined;
}

/**
 * The `temporal` program: what {@link findTemporal} finds, else downloaded, else built with Go.
 * Either is kept in the cache.
 *
 * @param {NodeJS.ProcessEnv} [environment]
 * @param {{ origin?: string }} [options] `origin`: where the official download is
 * @returns {Promise<string>}
 * @throws {Error} naming every way to get one, and why each failed
 */
export async function installTemporal(environment = process.env, { origin = downloadOrigin } = {}) {
  const found = await findTemporal(environment);
  if (found) return found;
  const folder = cachedFolder(environment);
  /** @type {string[]} */
  const failures = [];
  for (const { title, install } of sources(environment, origin)) {
    try {
      await withProgress(title, () => installOnce(folder, install));
      return join(folder, "temporal");
    } catch (error) {
      failures.push(`${title}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  throw new Error(waysToGetTemporal(failures));
}

/**
 * @param {NodeJS.ProcessEnv} environment
 * @param {string} origin
 */
function sources(environment, origin) {
  return [
    {
      title: `Downloading the Temporal development server ${cliVersion}`,
      install: (/** @type {string} */ staging) => downloadTemporal(origin, staging),
    },
    {
      title: `Building the Temporal development server ${cliVersion} with Go (once; some minutes)`,
      install: (/** @type {string} */ staging) => buildTemporal(environment, staging),
    },
  ];
}

/**
 * The address is the one the command line's own documentation gives, with a version for `latest`.
 *
 * @param {string} origin
 * @param {string} staging
 */
async function downloadTemporal(origin, staging) {
  const arch = process.arch === "x64" ? "amd64" : process.arch;
  const archive = join(staging, "archive.tar.gz");
  const query = `platform=${process.platform}&arch=${arch}`;
  await download(`${origin}/cli/archive/v${cliVersion}?${query}`, archive);
  await runCommand("tar", ["-xzf", archive, "-C", staging, "temporal"]);
  await serverVersion(join(staging, "temporal"));
}

/**
 * Built as the project's own releases are (its .goreleaser.yml): stripped, and without a C
 * compiler.
 *
 * @param {NodeJS.ProcessEnv} environment
 * @param {string} staging
 */
async function buildTemporal(environment, staging) {
  const go = findOnPath("go", environment);
  if (!go) throw new Error("no `go` on PATH");
  const version = `-X github.com/temporalio/cli/temporalcli.Version=${cliVersion}`;
  const program = `github.com/temporalio/cli/cmd/temporal@v${cliVersion}`;
  const env = { ...environment, GOBIN: staging, CGO_ENABLED: "0" };
  await runCommand(go, ["install", "-ldflags", `-s -w ${version}`, program], { env, cwd: staging });
  await serverVersion(join(staging, "temporal"));
}

/** @param {string} program */
async function isRecent(program) {
  const [major = 0, minor = 0] = (await serverVersion(program).catch(() => undefined)) ?? [];
  const [oldestMajor = 0, oldestMinor = 0] = oldestServer;
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return true;
  say(`${program} is passed over: it holds no Temporal server ${oldestServer.join(".")} or later`);
  return false;
}

/**
 * @param {string} program
 * @returns {Promise<number[]>}
 */
async function serverVersion(program) {
  const output = await runCommand(program, ["--version"]);
  const version = /Server (\d+)\.(\d+)/.exec(output);
  if (!version) throw new Error(`${program} --version does not name a server: ${output.trim()}`);
  return version.slice(1).map(Number);
}

/** @param {NodeJS.ProcessEnv} environment */
function cachedFolder(environment) {
  return join(cacheFolder(environment), `temporal-${cliVersion}`);
}

/** @param {NodeJS.ProcessEnv} environment */
function defaultConfigFile(environment) {
  const home = environment["HOME"] || homedir();
  const folder =
    process.platform === "darwin"
      ? join(home, "Library", "Application Support")
      : environment["XDG_CONFIG_HOME"] || join(home, ".config");
  return join(folder, "temporalio", "temporal.toml");
}

/**
 * Whether the profile `default` of a configuration file has an address.
 *
 * @param {string} toml
 */
function namesAddress(toml) {
  let section = "";
  for (const line of toml.split("\n").map((text) => text.trim())) {
    if (line.startsWith("[")) section = line.replaceAll(/[[\]\s"']|#.*$/g, "");
    else if (section === "profile.default" && /^address\s*=/.test(line)) return true;
  }
  return false;
}

/** @param {string[]} failures */
function waysToGetTemporal(failures) {
  return `No Temporal server. One of these gives one:
  - TEMPORAL_ADDRESS, or a profile in Temporal's configuration file, names a server that runs
  - \`temporal\` on PATH (the Temporal CLI, https://docs.temporal.io/cli, with server ${oldestServer.join(".")} or later)
  - the official download, from ${downloadOrigin}: tried on each start
  - Go on PATH and a reachable Go module proxy, to build it once
What was tried:
${failures.join("\n").replaceAll(/^/gm, "  ")}`;
}
