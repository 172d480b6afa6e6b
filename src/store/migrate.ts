import { readdir, readFile } from "node:fs/promises";
import type { Database, Queryable } from "./database.ts";
import { makePartitions } from "./upkeep.ts";

const folder = new URL("./migrations/", import.meta.url);

/** Any constant works as long as every process uses the same one. */
export const migrationLock = 7_846_101;

export interface Migration {
  number: number;
  name: string;
  sql: string;
}

/** The numbered `.sql` files beside this module, in order. */
export async function readMigrations(): Promise<Migration[]> {
  const names = (await readdir(folder)).filter((name) => name.endsWith(".sql")).sort();
  return Promise.all(
    names.map(async (name) => ({
      number: Number.parseInt(name, 10),
      name,
      sql: await readFile(new URL(name, folder), "utf8"),
    })),
  );
}

async function appliedNumbers(queryable: Queryable): Promise<Set<number>> {
  const rows = await queryable.query<{ number: number }>(
    "SELECT number FROM schema_migrations",
    [],
  );
  return new Set(rows.map((row) => row.number));
}

/**
 * Brings the schema up to date. Processes that start together take turns by an advisory lock. All
 * missing migrations are applied in one transaction: all or none. A large table takes its time, and so
 * does waiting for the process that is at it.
 *
 * @returns the names of the migrations that were applied now.
 */
export async function migrate(database: Database): Promise<string[]> {
  const migrations = await readMigrations();
  const applied = await database.patientTransaction(async (tx) => {
    await tx.query("SELECT pg_advisory_xact_lock($1)", [migrationLock]);
    await tx.query(
      `CREATE TABLE IF NOT EXISTS schema_migrations (
         number int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`,
    );
    const applied = await appliedNumbers(tx);
    const missing = migrations.filter((migration) => !applied.has(migration.number));
    for (const migration of missing) {
      await tx.query(migration.sql);
      await tx.query("INSERT INTO schema_migrations (number, name) VALUES ($1, $2)", [
        migration.number,
        migration.name,
      ]);
    }
    return missing.map((migration) => migration.name);
  });
  // The first turns must not find the default partition only: its events are deleted, not dropped.
  await makePartitions(database, 1);
  return applied;
}
