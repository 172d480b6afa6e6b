/** The value below which `share` of the samples lie. */
export function percentile(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((left, right) => left - right);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

/** Milliseconds of `count` runs, one after the other, after some that do not count. */
export async function timeEach<Result>(
  count: number,
  run: () => Promise<Result>,
  afterEach: (result: Result) => Promise<void> = async () => {},
): Promise<number[]> {
  const warmUps = 10;
  const samples: number[] = [];
  for (let each = 0; each < warmUps + count; each++) {
    const startedAt = performance.now();
    const result = await run();
    samples.push(performance.now() - startedAt);
    await afterEach(result);
  }
  return samples.slice(warmUps);
}

/** Milliseconds of `count` runs with `concurrency` under way at a time. */
export async function timeAll(
  count: number,
  concurrency: number,
  run: () => Promise<unknown>,
): Promise<number> {
  let left = count;
  const startedAt = performance.now();
  const lane = async (): Promise<void> => {
    while (left-- > 0) await run();
  };
  await Promise.all(Array.from({ length: concurrency }, lane));
  return performance.now() - startedAt;
}
