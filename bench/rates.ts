import { timeAll } from "./measure.ts";
import type { Shape } from "./shapes.ts";

const turns = 300;
const concurrency = 50;
/** The machine's other tenants come and go within seconds, so the shapes take turns. */
const rounds = 3;

/** Per second, over all rounds. */
export interface Rates {
  bare: number;
  /** Turns whose answer is known. */
  answers: number;
  /** Turns that Temporal has closed as well. */
  own: number;
}

/**
 * Measures how many turns get through with 50 of them under way.
 *
 * @param closed resolves when Temporal has closed a turn; its answer may be known before Temporal has
 *   heard of it.
 * @param leftovers runs before each measurement.
 */
export async function measureRates(parts: {
  bare: Shape;
  own: Shape;
  closed: (turnId: string) => Promise<void>;
  leftovers: () => Promise<void>;
}): Promise<Rates> {
  const { bare, own, closed, leftovers } = parts;
  const took = { bare: 0, answers: 0, own: 0 };
  for (let round = 0; round < rounds; round++) {
    await leftovers();
    took.bare += await timeAll(turns, concurrency, bare.turn);
    await leftovers();
    const ids: string[] = [];
    const answeredMs = await timeAll(turns, concurrency, async () => ids.push(await own.turn()));
    took.answers += answeredMs;
    took.own += answeredMs;
    took.own += await timeAll(ids.length, concurrency, () => closed(ids.pop() as string));
  }
  const rate = (tookMs: number) => (rounds * turns * 1_000) / tookMs;
  return { bare: rate(took.bare), answers: rate(took.answers), own: rate(took.own) };
}
