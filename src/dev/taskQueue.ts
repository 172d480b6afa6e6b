import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Config } from "../config.ts";
import { defaultTaskQueue } from "../turn/engineNames.ts";

const ownName = new RegExp(`^${defaultTaskQueue}-[0-9a-f]{8}$`);

/**
 * The task queue of `npm start`. Turns in the embedded database are unknown to every other worker, so
 * they have a queue of their own, kept in the folder beside that database; one that was configured wins.
 */
export async function devTaskQueue(config: Config): Promise<string> {
  if (config.databaseUrl !== null || config.isTaskQueueGiven) return config.taskQueue;
  const file = join(config.folder, "task-queue");
  const kept = (await readFile(file, "utf8").catch(() => "")).trim();
  if (ownName.test(kept)) return kept;
  const made = `${defaultTaskQueue}-${randomBytes(4).toString("hex")}`;
  await writeFile(file, `${made}\n`);
  return made;
}
