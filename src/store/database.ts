/**
 * What the rest of Turnkeeper knows of a database. Two drivers stand behind it: `postgres.ts` for
 * any PostgreSQL >= 14 with pgvector, `pglite.ts` for a first run in one process. The SQL is the same.
 */
export interface Queryable {
  /**
   * Runs one statement. `int8` comes back as number, `date` as `YYYY-MM-DD`, `timestamptz` as Date.
   *
   * @throws StoreUnavailable when the database cannot be reached or gives up the connection.
   */
  query<Row = Record<string, never>>(sql: string, parameters?: readonly unknown[]): Promise<Row[]>;
}

/** A transaction's own handle. */
export interface Transaction extends Queryable {
  /**
   * Runs a statement whose rows nobody needs, without waiting for it: statements that do not need
   * each other's results share one round trip. If it fails, the transaction fails.
   */
  send(sql: string, parameters?: readonly unknown[]): void;
}

export interface Database extends Queryable {
  /**
   * Runs `work` in one READ COMMITTED transaction; rolls back when it throws. Statements run in the
   * order in which they were issued, whether or not `work` awaits them. `work` may await
   * nothing but its own handle: an idle transaction is ended by the server after
   * `idleTransactionTimeoutMs`.
   */
  transaction<Result>(work: (tx: Transaction) => Promise<Result>): Promise<Result>;
  /** Like {@link transaction}, without any limit of time: for work that may wait or take long. */
  patientTransaction<Result>(work: (tx: Transaction) => Promise<Result>): Promise<Result>;
  /** Wakes listeners, in a transaction of its own that does not wait for the disk. May be lost. */
  notify(channel: Channel, payload: string): Promise<void>;
  /**
   * Calls `onMessage` for each notification, and with an empty payload after each reconnect,
   * because what was sent meanwhile is lost. Resolves once it listens.
   */
  listen(channel: Channel, onMessage: (payload: string) => void): Promise<Subscription>;
  close(): Promise<void>;
}

export interface Subscription {
  close(): Promise<void>;
}

/**
 * `turnkeeper_events`: something was written. `turnkeeper_cancels`, and a worker's own channel for
 * offers: the payload is a turn id.
 */
export type Channel = "turnkeeper_events" | "turnkeeper_cancels" | `turnkeeper_worker_${string}`;

/** The database is down, restarting or out of reach; the same call may succeed later. */
export class StoreUnavailable extends Error {
  readonly code = "store_unavailable";

  constructor(cause: unknown) {
    const reason = cause instanceof Error ? cause.message || cause.name : String(cause);
    super(`The database cannot be reached: ${reason}`, { cause });
    this.name = "StoreUnavailable";
  }
}

/** The first row of a statement that must return one. */
export async function one<Row>(rows: Promise<Row[]>): Promise<Row> {
  const [row] = await rows;
  if (row === undefined) throw new Error("The statement returned no row.");
  return row;
}
