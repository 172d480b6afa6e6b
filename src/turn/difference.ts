/** The one stretch in which two texts differ. */
export interface Difference {
  /** Characters before it, which are the same. */
  at: number;
  /** What stands there in each of them. */
  original: string;
  replay: string;
}

/** Characters at which both texts begin alike, whole code points. */
function commonStart(left: string, right: string): number {
  let length = 0;
  const limit = Math.min(left.length, right.length);
  while (length < limit && left[length] === right[length]) length += 1;
  const isInPair = length > 0 && /[\ud800-\udbff]/.test(left[length - 1] ?? "");
  return isInPair ? length - 1 : length;
}

/** Characters at which both texts end alike, whole code points. */
function commonEnd(left: string, right: string): number {
  let length = 0;
  const limit = Math.min(left.length, right.length);
  while (length < limit && left.at(-length - 1) === right.at(-length - 1)) length += 1;
  const isInPair = length > 0 && /[\udc00-\udfff]/.test(left.at(-length) ?? "");
  return isInPair ? length - 1 : length;
}

/** What is left of two texts without what they begin and end with alike; `null` if they are equal. */
export function differenceOf(original: string, replay: string): Difference | null {
  if (original === replay) return null;
  const at = commonStart(original, replay);
  const [left, right] = [original.slice(at), replay.slice(at)];
  const end = commonEnd(left, right);
  return {
    at,
    original: left.slice(0, left.length - end),
    replay: right.slice(0, right.length - end),
  };
}
