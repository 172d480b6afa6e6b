import { randomBytes } from "node:crypto";
import { Client } from "pg";
import { migrateByUrl } from "./migrateByUrl.ts";

/**
 * Makes a database for one test file on the server at `serverUrl`, under a name that says which
 * run it belongs to.
 *
 * @returns its name
 */
export async function createRunDatabase(
  serverUrl: string,
  runId: string,
  migrated: boolean,
): Promise<string> {
  const name = `${prefix(runId)}${randomBytes(6).toString("hex")}`;
  await onServer(serverUrl, async (client) => {
    const template = migrated ? await migratedTemplate(client, serverUrl, runId) : "template1";
    await client.query(`CREATE DATABASE ${name} TEMPLATE ${template}`);
  });
  return name;
}

/** Removes what a run made on a server that outlives it. */
export async function dropRunDatabases(serverUrl: string, runId: string): Promise<void> {
  await onServer(serverUrl, async (client) => {
    const { rows } = await client.query<{ datname: string }>(
      "SELECT datname FROM pg_database WHERE starts_with(datname, $1)",
      [prefix(runId)],
    );
    for (const { datname } of rows) await client.query(`DROP DATABASE ${datname} WITH (FORCE)`);
  });
}

/** One test file builds it while the others wait; a name is given to it once it is complete. */
async function migratedTemplate(client: Client, serverUrl: string, runId: string): Promise<string> {
  const template = `${prefix(runId)}template`;
  await client.query("SELECT pg_advisory_lock(hashtext($1))", [template]);
  try {
    const found = await client.query("SELECT FROM pg_database WHERE datname = $1", [template]);
    if (found.rowCount === 1) return template;
    const building = `${template}_building`;
    await client.query(`DROP DATABASE IF EXISTS ${building} WITH (FORCE)`);
    await client.query(`CREATE DATABASE ${building}`);
    await migrateByUrl(databaseUrl(serverUrl, building));
    await client.query(`ALTER DATABASE ${building} RENAME TO ${template}`);
    return template;
  } finally {
    await client.query("SELECT pg_advisory_unlock(hashtext($1))", [template]);
  }
}

async function onServer(url: string, work: (client: Client) => Promise<void>): Promise<void> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end();
  }
}

export function databaseUrl(serverUrl: string, name: string): string {
  const url = new URL(serverUrl);
  url.pathname = `/${name}`;
  return url.href;
}

function prefix(runId: string): string {
  return `turnkeeper_test_${runId}_`;
}
