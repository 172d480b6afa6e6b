import { createHash, randomBytes } from "node:crypto";
import { newId } from "../turn/ids.ts";
import type { Queryable } from "./database.ts";

/**
 * Keys are 256 random bits, so one round of SHA-256 protects them as well as a slow hash would; the
 * secret itself is shown once and stored nowhere.
 */
function secretHash(secret: string): Buffer {
  return createHash("sha256").update(secret).digest();
}

export interface ApiKey {
  id: string;
  project: string;
}

/** Creates a key for a project, and the project if it is new. Returns the secret, once. */
export async function createApiKey(
  queryable: Queryable,
  project: string,
  name: string,
): Promise<ApiKey & { secret: string }> {
  const secretBytes = 32;
  const secret = `tk-${randomBytes(secretBytes).toString("base64url")}`;
  const id = newId("apiKey");
  await queryable.query("INSERT INTO projects (id) VALUES ($1) ON CONFLICT DO NOTHING", [project]);
  await queryable.query(
    "INSERT INTO api_keys (id, project_id, name, secret_hash) VALUES ($1, $2, $3, $4)",
    [id, project, name, secretHash(secret)],
  );
  return { id, project, secret };
}

/** Whether there is such a project; keys make them. */
export async function hasProject(queryable: Queryable, project: string): Promise<boolean> {
  const rows = await queryable.query("SELECT id FROM projects WHERE id = $1", [project]);
  return rows.length > 0;
}

/** The key with that secret, unless it was revoked. */
export async function findApiKey(queryable: Queryable, secret: string): Promise<ApiKey | null> {
  const [row] = await queryable.query<{ id: string; project_id: string }>(
    "SELECT id, project_id FROM api_keys WHERE secret_hash = $1 AND revoked_at IS NULL",
    [secretHash(secret)],
  );
  return row === undefined ? null : { id: row.id, project: row.project_id };
}

/** Whether a key was ever made: revoking the last one must not open what it has closed. */
export async function everHadApiKeys(queryable: Queryable): Promise<boolean> {
  const rows = await queryable.query("SELECT id FROM api_keys LIMIT 1", []);
  return rows.length > 0;
}

export async function revokeApiKey(queryable: Queryable, id: string): Promise<boolean> {
  const rows = await queryable.query(
    "UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING id",
    [id],
  );
  return rows.length > 0;
}

export interface ApiKeyRecord extends ApiKey {
  name: string;
  createdAt: Date;
  revokedAt: Date | null;
}

export async function listApiKeys(queryable: Queryable): Promise<ApiKeyRecord[]> {
  const rows = await queryable.query<{
    id: string;
    project_id: string;
    name: string;
    created_at: Date;
    revoked_at: Date | null;
  }>("SELECT id, project_id, name, created_at, revoked_at FROM api_keys ORDER BY created_at", []);
  return rows.map((row) => ({
    id: row.id,
    project: row.project_id,
    name: row.name,
    createdAt: row.created_at,
    revokedAt: row.revoked_at,
  }));
}
