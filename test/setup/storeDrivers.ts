import { afterAll, beforeAll, describe } from "vitest";
import { migrate } from "../../src/store/migrate.ts";
import type { Database } from "../../src/store/database.ts";
import { openPglite } from "../../src/store/pglite.ts";
import { openPostgres } from "../../src/store/postgres.ts";
import { createTestDatabase } from "./database.ts";
import { describeWith } from "./servers.ts";

/** A database that is open while the tests of a `describe` run. */
export interface OpenDatabase {
  readonly database: Database;
  /** Empty for PGlite. */
  readonly url: string;
}

class Slot implements OpenDatabase {
  #database: Database | undefined;
  url = "";

  get database(): Database {
    if (this.#database === undefined) throw new Error("The database is opened before the tests.");
    return this.#database;
  }

  set(database: Database, url = ""): void {
    this.#database = database;
    this.url = url;
  }
}

/** `describe` with a database of its own in the shared PostgreSQL. */
export function describeOnPostgres(name: string, tests: (open: OpenDatabase) => void): void {
  const slot = new Slot();
  describeWith(["postgres"], name, () => {
    beforeAll(async () => {
      const { url } = await createTestDatabase();
      slot.set(openPostgres({ url }), url);
    });
    afterAll(() => slot.database.close());
    tests(slot);
  });
}

/** The same tests on both drivers; PGlite lives in memory and is started once per call. */
export function describeOnBoth(name: string, tests: (open: OpenDatabase) => void): void {
  describeOnPostgres(`${name}, on PostgreSQL`, tests);
  const slot = new Slot();
  describe(`${name}, on PGlite`, () => {
    beforeAll(async () => {
      slot.set(await openPglite());
      await migrate(slot.database);
    });
    afterAll(() => slot.database.close());
    tests(slot);
  });
}
