import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { acquireLock } from "./lockFile.mjs";

/** A build of the Temporal command line from source takes four minutes on two cores. */
const longestInstallMs = 20 * 60 * 1000;

/**
 * Fills a folder of the cache once, however many processes want it at the same time: the others
 * wait, and what is there is always whole.
 *
 * @param {string} folder where the result is to be
 * @param {(staging: string) => Promise<void>} install fills an empty folder
 * @returns {Promise<string>} `folder`
 */
export async function installOnce(folder, install) {
  if (existsSync(folder)) return folder;
  await mkdir(dirname(folder), { recursive: true });
  const lock = await acquireLock(`${folder}.lock`, { waitMs: longestInstallMs });
  try {
    if (existsSync(folder)) return folder;
    const staging = await mkdtemp(`${folder}.partial-`);
    try {
      await install(staging);
      await rename(staging, folder);
    } finally {
      await rm(staging, { recursive: true, force: true });
    }
    return folder;
  } finally {
    await lock.release();
  }
}
