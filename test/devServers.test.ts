import { Connection } from "@temporalio/client";
import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Client } from "pg";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { processIdentity } from "../setup/processIdentity.mjs";
import { anyFreePort, claimPort, PortTakenError, stepToFreePort } from "../src/dev/ports.ts";
import { startTemporalServer } from "../src/dev/temporalServer.ts";
import { searchAttributeNames } from "../src/turn/engineNames.ts";
import { createTestDatabase } from "./setup/database.ts";
import { startPostgres } from "./setup/postgresServer.ts";
import { describeWith, sharedTemporal } from "./setup/servers.ts";

const hasSetpriv = spawnSync("setpriv", ["--pdeathsig", "KILL", "true"]).status === 0;

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "turnkeeper-dev-"));
});

afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

describe("ports", () => {
  it("are stepped over when they are in use", async () => {
    await withBusyPort(async (busy) => {
      expect(await stepToFreePort(busy)).toBeGreaterThan(busy);
    });
  });

  it("are an error that names port and setting when set by hand and in use", async () => {
    await withBusyPort(async (busy) => {
      const claim = claimPort(busy, "TURNKEEPER_PORT");
      await expect(claim).rejects.toBeInstanceOf(PortTakenError);
      await expect(claim).rejects.toThrow(new RegExp(`${busy} \\(TURNKEEPER_PORT\\)`));
    });
  });

  it("count as in use when another process listens on all addresses", async () => {
    const server = createServer().listen(0, "0.0.0.0");
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    await expect(claimPort(port, "--port")).rejects.toBeInstanceOf(PortTakenError);
    server.close();
  });
});

describeWith(["temporal"], "the Temporal development server", () => {
  let binary: string;

  beforeAll(() => {
    ({ binary } = sharedTemporal());
  });

  it("knows our search attributes, also with a database file made before they existed", async () => {
    const dbFilename = join(folder, "temporal.db");
    const before = await startTemporalServer({ binary, dbFilename, searchAttributes: [] });
    await before.stop();
    const server = await startTemporalServer({ binary, dbFilename });
    const connection = await Connection.connect({ address: server.address });
    const listed = await connection.operatorService.listSearchAttributes({ namespace: "default" });
    expect(Object.keys(listed.customAttributes)).toEqual(
      expect.arrayContaining([...searchAttributeNames]),
    );
    await connection.close();
    await server.stop();
  });

  it("fails with its own words when its port is in use", async () => {
    await withBusyPort(async (port) => {
      await expect(startTemporalServer({ binary, port })).rejects.toThrow(
        new RegExp(`Temporal did not start.*${port}`, "s"),
      );
    });
  });

  it("starts again when another process took a port that it had chosen", async () => {
    const unlucky = join(folder, "unlucky");
    const told = "listen tcp 127.0.0.1:33511: bind: address already in use";
    const once = `[ -e "$0.started" ] || { touch "$0.started"; echo "${told}" >&2; exit 1; }`;
    await writeFile(unlucky, `#!/bin/sh\n${once}\nexec "${binary}" "$@"\n`, { mode: 0o755 });
    const server = await startTemporalServer({ binary: unlucky });
    await server.stop();
  });

  it("survives the terminal's Ctrl-C until its parent stops it", async () => {
    const parent = await startParent(binary, join(folder, "temporal.db"));
    process.kill(-parent.process.pid!, "SIGINT"); // what a terminal does: the whole group
    expect(await parent.nextLine()).toBe("answered, stopped");
    await once(parent.process, "exit");
    expect(processIdentity(parent.server.pid)).toBeUndefined();
  });

  it.skipIf(!hasSetpriv)("dies with a parent that was killed", async () => {
    const parent = await startParent(binary, join(folder, "temporal.db"));
    await killed(parent.process);
    await expect.poll(() => processIdentity(parent.server.pid)).toBeUndefined();
  });

  it("is stopped by the next start when a killed parent left it behind", async () => {
    const dbFilename = join(folder, "temporal.db");
    const withoutSetpriv = { PATH: folder };
    const parent = await startParent(binary, dbFilename, withoutSetpriv);
    await killed(parent.process);
    expect(processIdentity(parent.server.pid)).toBeDefined();
    const lines: string[] = [];
    const next = await startTemporalServer({ binary, dbFilename, log: (line) => lines.push(line) });
    expect(processIdentity(parent.server.pid)).toBeUndefined();
    expect(lines.join("\n")).toContain(`process ${parent.server.pid}`);
    await next.stop();
  });

  it("leaves a process alone that got the pid of an orphan, or has another file open", async () => {
    const dbFilename = join(folder, "temporal.db");
    const bystander = spawn("sleep", ["60"]);
    await once(bystander, "spawn");
    const identity = processIdentity(bystander.pid!);
    for (const record of [identity, { ...identity, startedAt: "another time" }]) {
      await writeFile(`${dbFilename}.server.json`, JSON.stringify(record));
      const server = await startTemporalServer({ binary, dbFilename });
      await server.stop();
      expect(processIdentity(bystander.pid!)).toEqual(identity);
    }
    await killed(bystander);
  });
});

describeWith(["postgres"], "PostgreSQL for tests", () => {
  it("keeps what was committed over a crash, on the same port", async () => {
    const server = await startPostgres();
    await query(server.url(), "CREATE TABLE kept AS SELECT 1 AS one");
    await server.crash();
    await expect(query(server.url(), "SELECT")).rejects.toThrow("ECONNREFUSED");
    await server.start();
    expect(await query(server.url(), "SELECT one FROM kept")).toEqual([{ one: 1 }]);
    await server.remove();
  });

  it("gives each caller a database of its own with all migrations, and pgvector at hand", async () => {
    const [first, second] = await Promise.all([createTestDatabase(), createTestDatabase()]);
    expect(first.name).not.toBe(second.name);
    const migrations = await query(first.url, "SELECT name FROM schema_migrations");
    expect(migrations.length).toBeGreaterThan(0);
    expect(await query(second.url, "SELECT name FROM schema_migrations")).toEqual(migrations);
    await query(first.url, "CREATE EXTENSION IF NOT EXISTS vector");
    const distance = "SELECT '[1,2]'::vector <-> '[1,3]'::vector AS distance";
    expect(await query(first.url, distance)).toEqual([{ distance: 1 }]);
  });
});

async function withBusyPort(work: (port: number) => Promise<void>): Promise<void> {
  const port = await anyFreePort();
  const server = createServer().listen(port, "127.0.0.1");
  await once(server, "listening");
  await work(port);
  server.close();
}

async function query(url: string, sql: string): Promise<unknown[]> {
  const client = new Client({ connectionString: url });
  try {
    await client.connect();
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

interface Parent {
  process: ChildProcess;
  server: { pid: number; address: string };
  nextLine(): Promise<string>;
}

async function startParent(
  binary: string,
  dbFilename: string,
  environment: NodeJS.ProcessEnv = {},
): Promise<Parent> {
  const script = fileURLToPath(new URL("./setup/serverParent.ts", import.meta.url));
  const child = spawn(process.execPath, [script, binary, dbFilename], {
    detached: true,
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, ...environment },
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const nextLine = async (): Promise<string> => (await lines.next()).value as string;
  return { process: child, server: JSON.parse(await nextLine()), nextLine };
}

async function killed(child: ChildProcess): Promise<void> {
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}
