import pg from "pg";
import { StoreUnavailable } from "./database.ts";
import type { Channel, Database, Subscription, Transaction } from "./database.ts";
import { repeatEvery } from "./repeat.ts";

export interface PostgresSettings {
  url: string;
  /** Connections of the pool; one more notifies, and one for each channel listens. */
  maxConnections: number;
  connectTimeoutMs: number;
  statementTimeoutMs: number;
  idleTransactionTimeoutMs: number;
  /**
   * A connection that owes an answer for this long is given up. Longer than `statementTimeoutMs`,
   * which the server keeps: this one is for a server that is gone without a word.
   */
  answerTimeoutMs: number;
  /** A connection that listens sends nothing else by which it would notice that it is dead. */
  listenPingMs: number;
}

export const defaultPostgresSettings: Omit<PostgresSettings, "url"> = {
  maxConnections: 20,
  connectTimeoutMs: 5_000,
  statementTimeoutMs: 15_000,
  idleTransactionTimeoutMs: 2_000,
  answerTimeoutMs: 20_000,
  listenPingMs: 5_000,
};

const listenRetryMs = 500;

const types = {
  getTypeParser(oid: number, format?: "text" | "binary"): (text: string) => unknown {
    if (oid === pg.types.builtins.INT8) return Number;
    if (oid === pg.types.builtins.DATE) return String;
    return pg.types.getTypeParser(oid, format) as (text: string) => unknown;
  },
};

/**
 * SQLSTATE classes and codes that say nothing about the statement: 08 connection, 53 resources,
 * 57P server shutdown, 40 serialization and deadlock, 25P03 idle transaction ended,
 * 57014 out of time (PostgreSQL manual, appendix A); and 25006 read-only: after a failover the
 * connection leads to a standby, and the next one to the new primary.
 */
const passingStates = /^(08|53|57P|40|25P03|25006|57014)/;

function translate(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const state = (error as { code?: unknown }).code;
  const isAnswerOfServer = error instanceof pg.DatabaseError;
  if (isAnswerOfServer && !(typeof state === "string" && passingStates.test(state))) return error;
  return new StoreUnavailable(error);
}

/**
 * Statements are prepared once per connection under a name made from their text; the texts are
 * constants of this code base, so their number is bounded.
 */
const statementNames = new Map<string, string>();

function statementName(sql: string): string {
  let name = statementNames.get(sql);
  if (name === undefined) {
    name = `tk${statementNames.size}`;
    statementNames.set(sql, name);
  }
  return name;
}

async function run<Row>(
  target: pg.Pool | pg.ClientBase,
  sql: string,
  parameters?: readonly unknown[],
): Promise<Row[]> {
  try {
    const query =
      parameters === undefined
        ? { text: sql, types }
        : { name: statementName(sql), text: sql, values: [...parameters], types };
    const result = await target.query<Row & pg.QueryResultRow>(query);
    return result.rows;
  } catch (error) {
    throw translate(error);
  }
}

/**
 * Holds what a connection sends until this tick is over, so that statements that follow one another
 * leave in one packet: a write to a socket costs more than most of what is around it.
 */
function sendTogether({ connection: { stream } }: pg.PoolClient): void {
  stream.cork();
  process.nextTick(() => stream.uncork());
}

async function transact<Result>(
  pool: pg.Pool,
  work: (tx: Transaction) => Promise<Result>,
): Promise<Result> {
  const client = await pool.connect().catch((error: unknown) => {
    throw translate(error);
  });
  // A checked-out connection that breaks between two statements emits an error of its own.
  const ignore = () => {};
  client.on("error", ignore);
  let broken: Error | undefined;
  let failed: unknown;
  try {
    const sent: Promise<unknown>[] = [];
    const issue = <Row>(sql: string, parameters?: readonly unknown[]): Promise<Row[]> => {
      sendTogether(client);
      const statement = run<Row>(client, sql, parameters);
      statement.catch((error: unknown) => (failed ??= error));
      return statement;
    };
    const send = (sql: string, parameters?: readonly unknown[]): void => {
      sent.push(issue(sql, parameters));
    };
    send("BEGIN");
    const result = await work({ query: issue, send });
    send("COMMIT");
    await Promise.all(sent);
    // A statement that failed has turned the commit into a rollback.
    if (failed !== undefined) throw failed as Error;
    return result;
  } catch (error) {
    // Statements behind one that failed say only that the transaction has failed.
    const cause = error instanceof pg.DatabaseError && error.code === "25P02" ? failed : error;
    if (cause instanceof StoreUnavailable) broken = cause;
    else await run(client, "ROLLBACK").catch((failure: Error) => (broken = failure));
    throw cause as Error;
  } finally {
    client.off("error", ignore);
    client.release(broken);
  }
}

/** What all pools share. */
function connectionOf(settings: PostgresSettings): pg.PoolConfig {
  return {
    connectionString: settings.url,
    connectionTimeoutMillis: settings.connectTimeoutMs,
    keepAlive: true,
    application_name: "turnkeeper",
    // Statements go out without waiting for the answers of those before them.
    pipeline: true,
  };
}

class PostgresDatabase implements Database {
  readonly #settings: PostgresSettings;
  readonly #pool: pg.Pool;
  readonly #notifier: pg.Pool;

  constructor(settings: PostgresSettings) {
    this.#settings = settings;
    const shared = { ...connectionOf(settings), query_timeout: settings.answerTimeoutMs };
    this.#pool = new pg.Pool({
      ...shared,
      max: settings.maxConnections,
      statement_timeout: settings.statementTimeoutMs,
      idle_in_transaction_session_timeout: settings.idleTransactionTimeoutMs,
    });
    this.#notifier = new pg.Pool({ ...shared, max: 1, options: "-c synchronous_commit=off" });
    // An idle connection that breaks is replaced by the pool; without a handler it ends the process.
    this.#pool.on("error", () => {});
    this.#notifier.on("error", () => {});
  }

  query<Row>(sql: string, parameters?: readonly unknown[]): Promise<Row[]> {
    return run<Row>(this.#pool, sql, parameters);
  }

  transaction<Result>(work: (tx: Transaction) => Promise<Result>): Promise<Result> {
    return transact(this.#pool, work);
  }

  async patientTransaction<Result>(work: (tx: Transaction) => Promise<Result>): Promise<Result> {
    const pool = new pg.Pool({ ...connectionOf(this.#settings), max: 1 });
    pool.on("error", () => {});
    try {
      return await transact(pool, work);
    } finally {
      await pool.end();
    }
  }

  async notify(channel: Channel, payload: string): Promise<void> {
    await run(this.#notifier, "SELECT pg_notify($1, $2)", [channel, payload]);
  }

  async listen(channel: Channel, onMessage: (payload: string) => void): Promise<Subscription> {
    const listener = new Listener(this.#settings, channel, onMessage);
    await listener.connect();
    return listener;
  }

  async close(): Promise<void> {
    await Promise.all([this.#pool.end(), this.#notifier.end()]);
  }
}

class Listener implements Subscription {
  readonly #settings: PostgresSettings;
  readonly #channel: Channel;
  readonly #onMessage: (payload: string) => void;
  #client: pg.Client | undefined;
  #closed = false;

  constructor(settings: PostgresSettings, channel: Channel, onMessage: (payload: string) => void) {
    this.#settings = settings;
    this.#channel = channel;
    this.#onMessage = onMessage;
  }

  async connect(): Promise<void> {
    const client = new pg.Client({
      connectionString: this.#settings.url,
      connectionTimeoutMillis: this.#settings.connectTimeoutMs,
      query_timeout: this.#settings.connectTimeoutMs,
      keepAlive: true,
      application_name: "turnkeeper-listener",
    });
    client.on("notification", (message) => this.#onMessage(message.payload ?? ""));
    client.on("error", () => void client.end().catch(() => {}));
    try {
      await client.connect();
      await client.query(`LISTEN ${this.#channel}`);
      const stopPinging = repeatEvery(this.#settings.listenPingMs, () =>
        client.query("SELECT").catch(() => client.end()),
      );
      // Not before: whoever called tries again after a connection that failed, and must be the only one.
      client.on("end", () => {
        stopPinging();
        this.#reconnect();
      });
      this.#client = client;
      if (this.#closed) await this.close();
    } catch (error) {
      await client.end().catch(() => {});
      throw translate(error);
    }
  }

  #reconnect(): void {
    if (this.#closed) return;
    const timer = setTimeout(() => {
      if (this.#closed) return;
      this.connect().then(
        () => this.#onMessage(""),
        () => this.#reconnect(),
      );
    }, listenRetryMs);
    timer.unref();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#client?.end().catch(() => {});
  }
}

/** Opens a pool on a PostgreSQL server. Connects lazily. */
export function openPostgres(
  settings: Partial<PostgresSettings> & Pick<PostgresSettings, "url">,
): Database {
  return new PostgresDatabase({ ...defaultPostgresSettings, ...settings });
}
