import type { Config } from "../config.ts";
import { createApiKey, listApiKeys, revokeApiKey } from "../store/apiKeys.ts";
import type { Database } from "../store/database.ts";
import { checkId } from "../turn/request.ts";
import { createLog, openDatabase } from "./parts.ts";

async function withDatabase(
  config: Config,
  work: (database: Database) => Promise<void>,
): Promise<void> {
  // A signal ends such a command as it ends any: what it was to do has not been done.
  const { signal } = new AbortController();
  const database = await openDatabase(config, createLog(config), signal);
  try {
    await work(database);
  } finally {
    await database.close();
  }
}

/** `turnkeeper key create`: prints the secret once; only its hash is stored. */
export function createKey(config: Config, project: string, name: string): Promise<void> {
  return withDatabase(config, async (database) => {
    const key = await createApiKey(database, checkId(project, "project"), name);
    console.log(key.secret);
    console.error(`Key ${key.id} of project ${project}. It is shown only now: keep it safe.`);
  });
}

/** `turnkeeper key list`. */
export function listKeys(config: Config): Promise<void> {
  return withDatabase(config, async (database) => {
    const keys = await listApiKeys(database);
    console.table(
      keys.map((key) => ({
        id: key.id,
        project: key.project,
        name: key.name,
        created: key.createdAt.toISOString(),
        revoked: key.revokedAt?.toISOString() ?? "",
      })),
    );
  });
}

/** `turnkeeper key revoke`. */
export function revokeKey(config: Config, id: string): Promise<void> {
  return withDatabase(config, async (database) => {
    const wasRevoked = await revokeApiKey(database, id);
    console.error(wasRevoked ? `Key ${id} is revoked.` : `There is no valid key ${id}.`);
    if (!wasRevoked) process.exitCode = 1;
  });
}
