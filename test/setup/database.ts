import { inject } from "vitest";
import { createRunDatabase, databaseUrl } from "./runDatabases.ts";
import { sharedPostgresUrl } from "./servers.ts";

/** A database of the shared PostgreSQL that only one test file uses. */
export interface TestDatabase {
  url: string;
  name: string;
}

/**
 * Makes a database with all migrations applied, or an empty one. The migrations run once per test
 * run, into a template that the others are copied from. It goes with the run: no clean-up needed.
 */
export async function createTestDatabase({ migrated = true } = {}): Promise<TestDatabase> {
  const serverUrl = sharedPostgresUrl();
  const name = await createRunDatabase(serverUrl, inject("runId"), migrated);
  return { name, url: databaseUrl(serverUrl, name) };
}
