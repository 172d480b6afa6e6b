/**
 * What Turnkeeper's statements are, told from their SQL. A transaction is what its statements make
 * it; its moment is its COMMIT.
 */
export const marks: readonly [mark: string, what: string][] = [
  ["INSERT INTO turns (", "admission"],
  ["INSERT INTO steps AS mine", "claim"],
  ["UPDATE turns SET status = 'running'", "turn taken"],
  ["INSERT INTO model_calls", "call opened"],
  ["outcome = CASE WHEN outcome = 'open'", "call closed"],
  ["UPDATE steps SET response_id = NULL", "response forgotten"],
  ["UPDATE turns SET degraded", "change of the model"],
  ["cancel_requested_at = coalesce(cancel_requested_at", "cancel"],
  ["UPDATE steps SET state = 'finished'", "step ending"],
  ["'tool', name, call, 'scheduled'", "calls scheduled"],
  ["ended_at = $7", "turn ending"],
  ["WITH incoming AS", "flush"],
  ["pg_notify", "notification"],
  ["UPDATE turns SET run_id = $3", "adoption"],
  ["UPDATE steps SET retry_at", "head start postponed"],
  ["SET state = 'abandoned'\n     WHERE turn_id = $1 AND number = 1", "head start given up"],
  ["DELETE FROM model_calls", "call dropped"],
  ["cost_usd = $8, certainty = 'exact'", "cost of a cancelled response"],
  ["UPDATE turns SET cancel_at = now()", "time to cancel"],
];

/** Those that are written by a statement of their own, outside of a transaction. */
const statementMoments = [
  "flush",
  "notification",
  "adoption",
  "head start postponed",
  "head start given up",
  "call dropped",
  "cost of a cancelled response",
  "time to cancel",
] as const;

/** Those that are the COMMIT of a transaction. */
const transactionMoments = [
  "admission",
  "claim of a model step",
  "claim of a tool step",
  "claim of a finished step",
  "call given up",
  "response replaced",
  "change of the model",
  "cancel",
  "ending of a model step",
  "ending of a tool step",
  "ending of the turn",
] as const;

/** The names of all moments that a statement or a commit can be. */
export const moments = [...statementMoments, ...transactionMoments];

export type StatementMoment = (typeof moments)[number];

function markOf(sql: string): string | null {
  return marks.find(([mark]) => sql.includes(mark))?.[1] ?? null;
}

/** The first that a transaction has says what it is: an admission may cancel, an ending closes calls. */
function momentOf(transaction: ReadonlySet<string>): StatementMoment | null {
  if (transaction.has("admission")) return "admission";
  if (transaction.has("turn ending")) return "ending of the turn";
  if (transaction.has("step ending")) {
    return transaction.has("calls scheduled") ? "ending of a model step" : "ending of a tool step";
  }
  if (transaction.has("claim")) {
    return transaction.has("call opened") ? "claim of a model step" : "claim of a tool step";
  }
  if (transaction.has("turn taken")) return "claim of a finished step";
  if (transaction.has("call closed")) return "call given up";
  if (transaction.has("response forgotten")) return "response replaced";
  if (transaction.has("change of the model")) return "change of the model";
  if (transaction.has("cancel")) return "cancel";
  return null;
}

/** Follows the statements of one connection. */
export class StatementReader {
  readonly #kept = new Map<string, string | null>();
  #transaction: Set<string> | null = null;

  /** Remembers what a prepared statement is. */
  prepare(name: string, sql: string): void {
    this.#kept.set(name, markOf(sql));
  }

  runPrepared(name: string): StatementMoment | null {
    return this.#run(this.#kept.get(name) ?? null);
  }

  runText(sql: string): StatementMoment | null {
    if (sql === "BEGIN") this.#transaction = new Set();
    const transaction = this.#transaction;
    if (sql === "COMMIT" || sql === "ROLLBACK") this.#transaction = null;
    if (sql === "COMMIT" && transaction !== null) return momentOf(transaction);
    return this.#run(markOf(sql));
  }

  #run(mark: string | null): StatementMoment | null {
    if (mark !== null) this.#transaction?.add(mark);
    return statementMoments.find((moment) => moment === mark) ?? null;
  }
}
