import { randomBytes } from "node:crypto";
import { describe, inject } from "vitest";

/** The PostgreSQL that all test files share; for databases see `createTestDatabase`. */
export function sharedPostgresUrl(): string {
  const postgres = inject("postgres");
  if ("missing" in postgres) throw new Error(postgres.missing);
  return postgres.url;
}

/** The Temporal server that all test files share, and the program it was started from. */
export function sharedTemporal(): { address: string; binary: string } {
  const temporal = inject("temporal");
  if ("missing" in temporal) throw new Error(temporal.missing);
  return temporal;
}

/** Test files share the namespace `default`; a task queue of its own keeps a file's work to itself. */
export function uniqueTaskQueue(): string {
  return `test-${randomBytes(6).toString("hex")}`;
}

/**
 * `describe` for tests that need shared servers: where one cannot be had, they are skipped, under a
 * name that says why (under `CI` the whole run has failed before).
 */
export function describeWith(
  needed: readonly ("postgres" | "temporal")[],
  name: string,
  tests: () => void,
): void {
  const reasons = needed
    .map((server) => inject(server))
    .flatMap((s) => ("missing" in s ? s.missing : []));
  if (reasons.length === 0) describe(name, tests);
  else describe.skip(`${name} (skipped: ${reasons.join("; ")})`, tests);
}
