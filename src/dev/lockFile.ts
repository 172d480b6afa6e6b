import { join } from "node:path";
import { acquireLock, LockHeldError } from "../../setup/lockFile.mjs";
import type { Lock } from "../../setup/lockFile.mjs";

/** Another living process works in this data folder. */
export class DataFolderInUseError extends Error {
  override name = "DataFolderInUseError";
}

/**
 * Keeps other processes out of a data folder that only one may have open. A kill -9 leaves it free.
 *
 * @param folder made if missing
 * @returns what gives the folder up again
 * @throws {DataFolderInUseError} naming the process that has it
 */
export async function lockDataFolder(folder: string): Promise<Lock> {
  try {
    return await acquireLock(join(folder, "lock"));
  } catch (error) {
    if (!(error instanceof LockHeldError)) throw error;
    const { pid, since } = error.holder;
    throw new DataFolderInUseError(
      `${folder} is in use by process ${pid}, since ${since}: stop that one first, or use another folder`,
      { cause: error },
    );
  }
}
