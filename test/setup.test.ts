import { execFile, fork } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { cacheFolder, sharedCacheFolder } from "../setup/cacheFolder.mjs";
import { download } from "../setup/download.mjs";
import { acquireLock } from "../setup/lockFile.mjs";
import { findOnPath } from "../setup/onPath.mjs";
import { installPackages } from "../setup/packages.mjs";
import { configuredTemporal, findTemporal, installTemporal } from "../setup/temporal.mjs";
import { DataFolderInUseError, lockDataFolder } from "../src/dev/lockFile.ts";

const run = promisify(execFile);

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "turnkeeper-setup-"));
});

afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

describe("preparing a clone", () => {
  it("says which Node it needs instead of failing on a Node that is too old", async () => {
    const pretendOld = `Object.defineProperty(process, "versions", { value: { node: "18.20.0" } });`;
    const flags = ["--import", `data:text/javascript,${encodeURIComponent(pretendOld)}`];
    const script = fileURLToPath(new URL("../setup/prepare.mjs", import.meta.url));
    const prepared = run(process.execPath, [...flags, script]);
    await expect(prepared).rejects.toThrow(/needs Node 20 or later/);
  });

  it("installs packages once, and again only when the lock file names others", async () => {
    await standInForNpm(`fs.mkdirSync("node_modules/.bin", { recursive: true });
      fs.rmSync("node_modules/.bin/node", { force: true });
      fs.symlinkSync(${JSON.stringify(process.execPath)}, "node_modules/.bin/node");
      fs.copyFileSync("package-lock.json", "node_modules/.package-lock.json");`);
    await writeLock("1.0.0");
    await installPackages(folder);
    await installPackages(folder);
    expect(await npmRuns()).toHaveLength(1);
    await writeLock("1.0.1");
    await installPackages(folder);
    expect(await npmRuns()).toEqual([
      expect.stringContaining("install --no-save"),
      expect.any(String),
    ]);
  });

  it("tells what to do when npm did not run the script that brings Node", async () => {
    await standInForNpm("");
    await writeLock("1.0.0");
    await expect(installPackages(folder)).rejects.toThrow(
      /npm rebuild node --ignore-scripts=false/,
    );
  });

  it("shows npm's own words when the installation fails", async () => {
    await standInForNpm(`console.error("npm error code ENOSPC"); process.exit(1);`);
    await writeLock("1.0.0");
    await expect(installPackages(folder)).rejects.toThrow(/npm error code ENOSPC/);
  });

  let npmExecpath: string | undefined;

  beforeEach(() => {
    npmExecpath = process.env["npm_execpath"];
  });

  afterEach(() => {
    if (npmExecpath === undefined) delete process.env["npm_execpath"];
    else process.env["npm_execpath"] = npmExecpath;
  });

  async function standInForNpm(work: string): Promise<void> {
    const script = join(folder, "npm-cli.cjs");
    const note = `fs.appendFileSync("npm-runs", process.argv.slice(2).join(" ") + "\\n");`;
    await writeFile(script, `const fs = require("node:fs"); ${note} ${work}`);
    process.env["npm_execpath"] = script;
  }

  async function npmRuns(): Promise<string[]> {
    return (await readFile(join(folder, "npm-runs"), "utf8")).trim().split("\n");
  }

  async function writeLock(version: string): Promise<void> {
    const packages = {
      "": { name: "root" },
      "node_modules/some": { version },
    };
    await writeFile(join(folder, "package-lock.json"), JSON.stringify({ packages }));
  }
});

describe("the cache folder", () => {
  it("follows the XDG variable, and ignores it when relative, as its specification says", () => {
    expect(cacheFolder({ XDG_CACHE_HOME: "/caches", HOME: "/home/me" })).toBe("/caches/turnkeeper");
    expect(cacheFolder({ XDG_CACHE_HOME: "caches", HOME: "/home/me" })).toMatch(
      /^\/home\/me\/.*turnkeeper$/,
    );
  });

  it.skipIf(process.getuid?.() !== 0)(
    "is open to other users for what root starts as them",
    async () => {
      const home = join(folder, "home");
      await mkdir(home, { mode: 0o700 });
      await chmod(folder, 0o755);
      expect(sharedCacheFolder({ HOME: home })).not.toContain(home);
      await chmod(home, 0o711);
      expect(sharedCacheFolder({ HOME: home })).toContain(home);
    },
  );
});

describe("finding a Temporal server", () => {
  it("knows by which setting one is named that runs already", async () => {
    const home = { HOME: folder, XDG_CONFIG_HOME: join(folder, ".config") };
    expect(configuredTemporal(home)).toBeUndefined();
    expect(configuredTemporal({ ...home, TEMPORAL_ADDRESS: "here:7233" })).toBe("TEMPORAL_ADDRESS");
    expect(configuredTemporal({ ...home, TEMPORAL_PROFILE: "cloud" })).toBe("TEMPORAL_PROFILE");
    const file = join(folder, "temporal.toml");
    await writeFile(
      file,
      `[profile.cloud]\naddress = "there:7233"\n[profile.default]\nnamespace = "n"`,
    );
    expect(configuredTemporal({ ...home, TEMPORAL_CONFIG_FILE: file })).toBeUndefined();
    await writeFile(file, `[profile.default]\nnamespace = "n"\naddress = "there:7233"`);
    expect(configuredTemporal({ ...home, TEMPORAL_CONFIG_FILE: file })).toBe(file);
  });

  it("takes the one on PATH, but not one that is too old", async () => {
    const program = await standIn("temporal", printsServer("1.29.1"));
    expect(await findTemporal({ PATH: folder, HOME: folder })).toBe(program);
    await standIn("temporal", printsServer("1.20.0"));
    expect(await findTemporal({ PATH: folder, HOME: folder })).toBeUndefined();
  });

  it("downloads it once, however many ask at the same time, and then takes it from the cache", async () => {
    await standIn("temporal", printsServer("1.29.1"));
    const archive = join(folder, "temporal.tar.gz");
    await run("tar", ["-czf", archive, "-C", folder, "temporal"]);
    await rm(join(folder, "temporal"));
    const requests: string[] = [];
    await withHttpServer(
      async (path) => (requests.push(path), readFile(archive)),
      async (origin) => {
        const environment = { PATH: await programs("tar", "gzip"), HOME: folder };
        const install = (): Promise<string> => installTemporal(environment, { origin });
        const [first, second] = await Promise.all([install(), install()]);
        expect(first).toBe(second);
        expect(await install()).toBe(first);
        expect((await run(first, ["--version"])).stdout).toContain("Server 1.29.1");
        expect(requests).toEqual([
          expect.stringMatching(/^\/cli\/archive\/v[\d.]+\?platform=.+&arch=.+/),
        ]);
      },
    );
  });

  it("builds it with Go when the download fails, and leaves nothing half done behind", async () => {
    await standIn("go", `cp "${await standIn("built", printsServer("1.29.1"))}" "$GOBIN/temporal"`);
    await withHttpServer(undefined, async (origin) => {
      const environment = { PATH: `${folder}:${await programs("cp")}`, HOME: folder };
      const program = await installTemporal(environment, { origin });
      expect(await findTemporal({ PATH: "", HOME: folder })).toBe(program);
    });
    const cached = await readdir(cacheFolder({ HOME: folder }));
    expect(cached.filter((name) => name.includes("partial"))).toEqual([]);
  });

  it("names every way to get one, and what failed, when there is none", async () => {
    await withHttpServer(undefined, async (origin) => {
      const installed = installTemporal({ PATH: folder, HOME: folder }, { origin });
      for (const way of ["TEMPORAL_ADDRESS", "on PATH", "official download", "Go on PATH"]) {
        await expect(installed).rejects.toThrow(way);
      }
      await expect(installed).rejects.toThrow(/answered 404.*no `go` on PATH/s);
    });
  });

  it("gives up a download soon when the server is silent", async () => {
    await withHttpServer(
      () => new Promise(() => {}),
      async (origin) => {
        const file = join(folder, "file");
        const downloaded = download(`${origin}/`, file, { answerTimeoutMs: 100 });
        await expect(downloaded).rejects.toThrow("no answer from 127.0.0.1");
      },
    );
  });

  /** A PATH with these programs and no other: this machine may have a `temporal` or `go` beside them. */
  async function programs(...names: string[]): Promise<string> {
    const bin = join(folder, "bin");
    await mkdir(bin);
    await Promise.all(names.map((name) => symlink(findOnPath(name)!, join(bin, name))));
    return bin;
  }

  function printsServer(version: string): string {
    return `echo "temporal version 1.0.0 (Server ${version}, UI 2.0.0)"`;
  }

  async function standIn(name: string, shellScript: string): Promise<string> {
    const path = join(folder, name);
    await writeFile(path, `#!/bin/sh\n${shellScript}\n`, { mode: 0o755 });
    return path;
  }
});

describe("the lock on a data folder", () => {
  it("is held by one, and names the holder to the others", async () => {
    const lock = await lockDataFolder(folder);
    await expect(lockDataFolder(folder)).rejects.toBeInstanceOf(DataFolderInUseError);
    await expect(lockDataFolder(folder)).rejects.toThrow(`process ${process.pid}`);
    await lock.release();
    await (await lockDataFolder(folder)).release();
  });

  it("is free again after a kill -9 of its holder, not before", async () => {
    const holder = await holderProcess();
    await expect(lockDataFolder(folder)).rejects.toThrow(`process ${holder.pid}`);
    holder.kill("SIGKILL");
    await once(holder, "exit");
    await (await lockDataFolder(folder)).release();
  });

  it("is not held by a process that only got the pid of a dead holder", async () => {
    const holder = await holderProcess();
    const claim = (await readdir(join(folder, "lock"))).find((name) => name.endsWith(".json"));
    const path = join(folder, "lock", claim!);
    const { pid } = JSON.parse(await readFile(path, "utf8"));
    await writeFile(path, JSON.stringify({ pid, startedAt: "another time", since: "then" }));
    await (await lockDataFolder(folder)).release();
    holder.kill("SIGKILL");
  });

  it("goes to exactly one of many that ask at once, and to each in turn if they wait", async () => {
    let holders = 0;
    let most = 0;
    const hold = async (): Promise<void> => {
      const lock = await acquireLock(join(folder, "contended"), { waitMs: 20_000 });
      holders += 1;
      most = Math.max(most, holders);
      await new Promise((resolve) => setImmediate(resolve));
      holders -= 1;
      await lock.release();
    };
    await Promise.all(Array.from({ length: 8 }, hold));
    expect(most).toBe(1);
  });

  async function holderProcess(): Promise<ChildProcess> {
    const module = new URL("../setup/lockFile.mjs", import.meta.url).href;
    const script = join(folder, "holder.mjs");
    const lock = JSON.stringify(join(folder, "lock"));
    await writeFile(
      script,
      `import { acquireLock } from ${JSON.stringify(module)};
       await acquireLock(${lock}); process.send("held"); setInterval(() => {}, 1000);`,
    );
    const child = fork(script);
    await once(child, "message");
    return child;
  }
});

/** Answers every request with what `answer` gives, or 404 without one. */
async function withHttpServer(
  answer: ((path: string) => Promise<Buffer>) | undefined,
  work: (origin: string) => Promise<void>,
): Promise<void> {
  const server = createServer((request, response) => {
    if (!answer) response.writeHead(404).end();
    else void answer(request.url!).then((body) => response.end(body));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    await work(`http://127.0.0.1:${(server.address() as { port: number }).port}`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}
