/** Something that a process does to a server, seen from between the two. */
export interface Moment {
  /** Who does it, such as `worker-1`. */
  process: string;
  /** The statement, the call or the tool, such as `claim of a model step`. */
  what: string;
  /** Before it is passed on, or when its answer has come and is not passed on yet. */
  side: "before" | "after";
}

/** The moment to wait for: the `nth` of its kind, from 1. */
export interface Point {
  what: string;
  side: "before" | "after";
  nth: number;
  /** Only where one of these does it. */
  by?: "worker" | "gateway";
}

/** A moment that was waited for, and is held. */
export interface Held {
  process: string;
  /** `performance.now()` when it was reached. */
  reachedAt: number;
  /** Lets it go on. Where the process or the connection is gone by then, nothing goes on. */
  release(): void;
  /** Lets nothing go on: the connection breaks as the process's death would break it. */
  drop(): void;
}

/** The held moment must not go on: its connection breaks. */
export class Dropped extends Error {}

interface Armed {
  point: Point;
  seen: number;
  reached: PromiseWithResolvers<Held>;
}

/**
 * Where everything that happens between the processes and their servers passes by. One point at a
 * time can be armed; what reaches it is held until the harness has done what it wants to do there.
 */
export class Tripwire {
  /** Told of everything that passes, also of what is going to be held. */
  onMoment: (moment: Moment) => void = () => {};
  #armed: Armed | null = null;

  /** Resolves when the point is reached. */
  arm(point: Point): Promise<Held> {
    this.#armed = { point, seen: 0, reached: Promise.withResolvers<Held>() };
    return this.#armed.reached.promise;
  }

  disarm(): void {
    this.#armed = null;
  }

  /**
   * For whatever passes on: resolves at once, or when the held moment may go on.
   *
   * @throws Dropped when it may not.
   */
  async pass(moment: Moment): Promise<void> {
    this.onMoment(moment);
    const armed = this.#armed;
    if (armed === null) return;
    const { point } = armed;
    if (point.what !== moment.what || point.side !== moment.side) return;
    if (point.by !== undefined && !moment.process.startsWith(point.by)) return;
    armed.seen += 1;
    if (armed.seen < point.nth) return;
    this.#armed = null;
    const held = Promise.withResolvers<void>();
    armed.reached.resolve({
      process: moment.process,
      reachedAt: performance.now(),
      release: held.resolve,
      drop: () => held.reject(new Dropped(`Dropped ${moment.side} ${moment.what}.`)),
    });
    await held.promise;
  }
}
