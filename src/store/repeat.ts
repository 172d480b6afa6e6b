/**
 * Does `work` every `everyMs`, one at a time: while the database is slow it must not pile up and take
 * the connections of everything else. What fails is done again the next time.
 *
 * @returns what ends it.
 */
export function repeatEvery(everyMs: number, work: () => Promise<unknown>): () => void {
  let isUnderWay = false;
  const tick = (): void => {
    if (isUnderWay) return;
    isUnderWay = true;
    void work()
      .catch(() => {})
      .finally(() => (isUnderWay = false));
  };
  const timer = setInterval(tick, everyMs).unref();
  return () => clearInterval(timer);
}
