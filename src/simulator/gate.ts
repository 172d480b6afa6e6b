/** A place in a stream where it waits for a test. */
export interface Gate {
  /** Waits when this many deltas are out; `"headers"`: before anything is answered. */
  readonly at: number | "headers";
  /** Resolves when a response has come to the gate; what it sent before is written by then. */
  readonly reached: Promise<void>;
  /** Lets through what waits here and what comes later. */
  open(): void;
  /** For the simulator: marks the gate as reached and waits until it is open. */
  pass(): Promise<void>;
}

/** A gate after `at` deltas of any kind (0: before the first), or before the headers. */
export function gate(at: number | "headers" = 1): Gate {
  const reached = Promise.withResolvers<void>();
  const opened = Promise.withResolvers<void>();
  return {
    at,
    reached: reached.promise,
    open: opened.resolve,
    pass() {
      reached.resolve();
      return opened.promise;
    },
  };
}
