/**
 * What Turnkeeper's statements are, told from their SQL. A transaction is what its statements make
 * it; its moment is its COMMIT.
 */
export const marks: readonly [mark: string, what: string][] = [
  ["INSERT INTO turns (", "admission"],
  ["INSERT INTO steps AS mine", "claim"],
  ["INSERT INTO model_calls", "call opened"],
  ["UPDATE steps SET state = 'finished'", "step ending"],
  ["'tool', name, call, 'scheduled'", "calls scheduled"],
  ["ended_at = $7", "turn ending"],
  ["WITH incoming AS", "flush"],
  ["pg_notify", "notification"],
];

/** The names of all moments that a statement or a commit can be. */
export type StatementMoment =
  | "admission"
  | "claim of a model step"
  | "claim of a tool step"
  | "flush"
  | "ending of a model step"
  | "ending of a tool step"
  | "ending of the turn"
  | "notification";

function markOf(sql: string): string | null {
  return marks.find(([mark]) => sql.includes(mark))?.[1] ?? null;
}

function momentOf(transaction: ReadonlySet<string>): StatementMoment | null {
  if (transaction.has("admission")) return "admission";
  if (transaction.has("turn ending")) return "ending of the turn";
  if (transaction.has("step ending")) {
    return transaction.has("calls scheduled") ? "ending of a model step" : "ending of a tool step";
  }
  if (transaction.has("claim")) {
    return transaction.has("call opened") ? "claim of a model step" : "claim of a tool step";
  }
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
    return mark === "flush" || mark === "notification" ? mark : null;
  }
}
