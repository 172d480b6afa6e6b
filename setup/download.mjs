import { createWriteStream } from "node:fs";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

/** A machine that cannot reach the server should go on soon. */
const defaultAnswerTimeoutMs = 8_000;
const idleTimeoutMs = 30_000;

/**
 * @param {string} url
 * @param {string} path the file to write
 * @param {{ answerTimeoutMs?: number }} [options] 8 s by default
 * @throws {Error} when the server does not answer in time, answers with an error, or falls silent
 *   for 30 s
 */
export async function download(url, path, { answerTimeoutMs = defaultAnswerTimeoutMs } = {}) {
  const controller = new AbortController();
  const { signal } = controller;
  const expire = () => controller.abort(new Error(`no answer from ${new URL(url).host}`));
  let timer = setTimeout(expire, answerTimeoutMs);
  const restart = () => {
    clearTimeout(timer);
    timer = setTimeout(expire, idleTimeoutMs);
  };
  try {
    const response = await fetch(url, { signal });
    if (!response.ok || !response.body) throw new Error(`${url} answered ${response.status}`);
    const body = Readable.fromWeb(/** @type {any} */ (response.body));
    body.on("data", restart);
    await pipeline(body, createWriteStream(path), { signal });
  } catch (error) {
    throw new Error(`download failed: ${reason(error)}`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
}

/**
 * fetch says "fetch failed" and keeps what happened in the cause.
 *
 * @param {any} error
 */
function reason(error) {
  return error?.cause?.message || error?.message || String(error);
}
