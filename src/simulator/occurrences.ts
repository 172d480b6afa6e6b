// What happened, for tests that wait for it.
import type { BilledCall } from "./bill.ts";
import type { SimulatedRequest } from "./script.ts";

export interface SimulatedDelta {
  responseId: string;
  text: string;
  /** Deltas of this response so far, from 1. */
  count: number;
}

export interface Occurrences {
  /** A request has been read, at any endpoint. */
  request: SimulatedRequest;
  /** A delta has been written to whoever listens. */
  delta: SimulatedDelta;
  /** A response is over, or its request was refused. */
  finished: BilledCall;
  /** A response ended because its client went away. */
  aborted: BilledCall;
  /** The connection of a POST /v1/responses or of a stream is closed. */
  closed: SimulatedRequest;
}

export type Occurrence = keyof Occurrences;

interface Waiter {
  name: Occurrence;
  accepts(value: unknown): boolean;
  resolve(value: unknown): void;
}

/** Every occurrence is handed to one waiter, whether it came before the waiter or after. */
export class OccurrenceLog {
  readonly #maxKept: number;
  #past: { name: Occurrence; value: unknown }[] = [];
  #waiters: Waiter[] = [];

  constructor(maxKept: number) {
    this.#maxKept = maxKept;
  }

  add<N extends Occurrence>(name: N, value: Occurrences[N]): void {
    const index = this.#waiters.findIndex((one) => one.name === name && one.accepts(value));
    const [waiter] = index < 0 ? [] : this.#waiters.splice(index, 1);
    if (waiter) return waiter.resolve(value);
    this.#past.push({ name, value });
    // Dropped by halves, so that a long run does not pay for a shift each time.
    if (this.#past.length > this.#maxKept) this.#past = this.#past.slice(this.#maxKept / 2);
  }

  waitFor<N extends Occurrence>(
    name: N,
    accepts: (value: Occurrences[N]) => boolean = () => true,
  ): Promise<Occurrences[N]> {
    const isIt = (value: unknown) => accepts(value as Occurrences[N]);
    const index = this.#past.findIndex((one) => one.name === name && isIt(one.value));
    const [past] = index < 0 ? [] : this.#past.splice(index, 1);
    if (past) return Promise.resolve(past.value as Occurrences[N]);
    const { promise, resolve } = Promise.withResolvers<Occurrences[N]>();
    const settle = (value: unknown) => resolve(value as Occurrences[N]);
    this.#waiters.push({ name, accepts: isIt, resolve: settle });
    return promise;
  }
}
