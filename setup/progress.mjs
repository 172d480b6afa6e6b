/**
 * Tells on standard error what takes long: on a terminal one line with the seconds that have
 * passed, elsewhere one plain line at the start and one at the end.
 *
 * @template T
 * @param {string} title
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function withProgress(title, work) {
  const started = Date.now();
  const seconds = () => Math.round((Date.now() - started) / 1000);
  const { isTTY } = process.stderr;
  const show = () => process.stderr.write(`\r${title} ... ${seconds()} s`);
  const timer = isTTY ? setInterval(show, 1000) : undefined;
  if (isTTY) show();
  else say(`${title} ...`);
  /** @param {string} ending */
  const finish = (ending) => {
    clearInterval(timer);
    if (isTTY) process.stderr.write(`\r${title} ... ${ending} in ${seconds()} s\n`);
    else say(`${title} ... ${ending} in ${seconds()} s`);
  };
  try {
    const result = await work();
    finish("done");
    return result;
  } catch (error) {
    finish("failed");
    throw error;
  }
}

/** @param {string} line */
export function say(line) {
  process.stderr.write(`${line}\n`);
}
