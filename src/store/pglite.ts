import { PGlite, types } from "@electric-sql/pglite";
import type { Transaction as PgliteTransaction } from "@electric-sql/pglite";
import { vector } from "@electric-sql/pglite-pgvector";
import type { Channel, Database, Subscription, Transaction } from "./database.ts";

const parsers = {
  [types.INT8]: Number,
  [types.DATE]: String,
};

async function run<Row>(
  target: PGlite | PgliteTransaction,
  sql: string,
  parameters?: readonly unknown[],
): Promise<Row[]> {
  if (parameters === undefined) {
    const results = await target.exec(sql, { parsers });
    return (results.at(-1)?.rows ?? []) as Row[];
  }
  const result = await target.query<Row>(sql, [...parameters], { parsers });
  return result.rows;
}

class PgliteDatabase implements Database {
  readonly #engine: PGlite;

  constructor(engine: PGlite) {
    this.#engine = engine;
  }

  query<Row>(sql: string, parameters?: readonly unknown[]): Promise<Row[]> {
    return run<Row>(this.#engine, sql, parameters);
  }

  async transaction<Result>(work: (tx: Transaction) => Promise<Result>): Promise<Result> {
    let failed: unknown;
    try {
      return await this.#engine.transaction(async (tx) => {
        const sent: Promise<unknown>[] = [];
        const issue = <Row>(sql: string, parameters?: readonly unknown[]): Promise<Row[]> => {
          const statement = run<Row>(tx, sql, parameters);
          statement.catch((error: unknown) => (failed ??= error));
          return statement;
        };
        const send = (sql: string, parameters?: readonly unknown[]): void => {
          sent.push(issue(sql, parameters));
        };
        const result = await work({ query: issue, send });
        await Promise.all(sent);
        return result;
      });
    } catch (error) {
      // Statements behind one that failed say only that the transaction has failed.
      throw (error as { code?: unknown }).code === "25P02" ? failed : error;
    }
  }

  /** The embedded database has no limits of time, and nobody beside this process to wait for. */
  patientTransaction<Result>(work: (tx: Transaction) => Promise<Result>): Promise<Result> {
    return this.transaction(work);
  }

  async notify(channel: Channel, payload: string): Promise<void> {
    await run(this.#engine, "SELECT pg_notify($1, $2)", [channel, payload]);
  }

  async listen(channel: Channel, onMessage: (payload: string) => void): Promise<Subscription> {
    const stop = await this.#engine.listen(channel, onMessage);
    return { close: () => stop() };
  }

  async close(): Promise<void> {
    await this.#engine.close();
  }
}

/**
 * Opens the embedded database, for development and for one process at a time: the caller holds the
 * folder's lock. The first opening of a folder takes seconds.
 *
 * @param folder where the data lies; without it the data lives in memory.
 */
export async function openPglite(folder?: string): Promise<Database> {
  const engine = await PGlite.create({
    ...(folder === undefined ? {} : { dataDir: folder }),
    extensions: { vector },
  });
  return new PgliteDatabase(engine);
}
