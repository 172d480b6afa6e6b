import { createHash } from "node:crypto";

/** Numbers from 0 up to 1, the same for the same seed. */
export type Random = () => number;

/** @param of what the numbers are for: each purpose has a sequence of its own. */
export function randomOf(seed: number, of: string): Random {
  let drawn = 0;
  return () => {
    const digest = createHash("sha256").update(`${seed} ${of} ${drawn++}`).digest();
    return digest.readUInt32BE() / 2 ** 32;
  };
}

export function pick<Value>(random: Random, values: readonly Value[]): Value {
  return values[Math.floor(random() * values.length)] as Value;
}

/** A shuffled copy (Fisher and Yates). */
export function shuffle<Value>(random: Random, values: readonly Value[]): Value[] {
  const shuffled = [...values];
  for (let at = shuffled.length - 1; at > 0; at--) {
    const other = Math.floor(random() * (at + 1));
    [shuffled[at], shuffled[other]] = [shuffled[other] as Value, shuffled[at] as Value];
  }
  return shuffled;
}
