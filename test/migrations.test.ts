import { expect, test } from "vitest";
import type { Database } from "../src/store/database.ts";
import { migrate, migrationLock, readMigrations } from "../src/store/migrate.ts";
import { openPglite } from "../src/store/pglite.ts";
import { openPostgres } from "../src/store/postgres.ts";
import { createTestDatabase } from "./setup/database.ts";
import { describeWith } from "./setup/servers.ts";

/** Tables, columns, indexes and constraints, in words that do not depend on the server. */
async function schemaOf(database: Database): Promise<unknown> {
  const columns = await database.query(
    `SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity
     FROM information_schema.columns WHERE table_schema = 'public'
     ORDER BY table_name, column_name`,
    [],
  );
  const indexes = await database.query(
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    [],
  );
  const constraints = await database.query(
    `SELECT conrelid::regclass::text AS "table", conname, pg_get_constraintdef(oid) AS definition
     FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
     ORDER BY 1, 2`,
    [],
  );
  return { columns, indexes, constraints };
}

describeWith(["postgres"], "migrations", () => {
  test("are applied once by processes that start together, and not again", async () => {
    const { url } = await createTestDatabase({ migrated: false });
    const processes = Array.from({ length: 5 }, () => openPostgres({ url }));
    const names = (await readMigrations()).map((migration) => migration.name);
    const applied = await Promise.all(processes.map((each) => migrate(each)));
    expect(applied.toSorted((a, b) => b.length - a.length)).toEqual([names, [], [], [], []]);
    expect(await migrate(processes[0] as Database)).toEqual([]);
    const recorded = await (processes[0] as Database).query<{ name: string }>(
      "SELECT name FROM schema_migrations ORDER BY number",
      [],
    );
    expect(recorded.map((row) => row.name)).toEqual(names);
    await Promise.all(processes.map((each) => each.close()));
  });

  test("wait and work for longer than a statement may", async () => {
    const { url } = await createTestDatabase({ migrated: false });
    const holder = openPostgres({ url, idleTransactionTimeoutMs: 60_000 });
    const database = openPostgres({ url, statementTimeoutMs: 500, answerTimeoutMs: 600 });
    const hasWaited = `SELECT pid FROM pg_stat_activity WHERE datname = current_database()
      AND wait_event = 'advisory' AND clock_timestamp() - query_start > interval '700 ms'`;
    const migrating = await holder.transaction(async (tx) => {
      await tx.query("SELECT pg_advisory_xact_lock($1)", [migrationLock]);
      const applied = migrate(database);
      const isSettled = applied.then(
        () => true,
        () => true,
      );
      const isLate = async () => (await holder.query(hasWaited)).length > 0;
      while (!(await Promise.race([isSettled, isLate()])));
      return { applied };
    });
    expect(await migrating.applied).toHaveLength((await readMigrations()).length);
    await Promise.all([holder.close(), database.close()]);
  });

  test("make the same schema on both drivers", async () => {
    const { url } = await createTestDatabase();
    const postgres = openPostgres({ url });
    const pglite = await openPglite();
    await migrate(pglite);
    expect(await migrate(pglite)).toEqual([]);
    expect(await schemaOf(pglite)).toEqual(await schemaOf(postgres));
    await Promise.all([postgres.close(), pglite.close()]);
  });

  test("are numbered without gaps or twins", async () => {
    const numbers = (await readMigrations()).map((migration) => migration.number);
    expect(numbers).toEqual(numbers.map((_, at) => at + 1));
  });

  test("leave nothing behind when one fails", async () => {
    const { url } = await createTestDatabase({ migrated: false });
    const database = openPostgres({ url });
    // The name of one of the tables is taken.
    await database.query("CREATE TABLE steps (id int)");
    await expect(migrate(database)).rejects.toThrow("steps");
    const tables = await database.query<{ name: string }>(
      "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
      [],
    );
    expect(tables).toEqual([{ name: "steps" }]);
    await database.query("DROP TABLE steps");
    expect(await migrate(database)).not.toEqual([]);
    await database.close();
  });
});
