import { migrate } from "../../src/store/migrate.ts";
import { defaultPostgresSettings, openPostgres } from "../../src/store/postgres.ts";

/**
 * Applies all migrations to the database at `url`, and leaves no connection behind (a database
 * with connections cannot be a template).
 */
export async function migrateByUrl(url: string): Promise<void> {
  const database = openPostgres({ ...defaultPostgresSettings, url });
  try {
    await migrate(database);
  } finally {
    await database.close();
  }
}
