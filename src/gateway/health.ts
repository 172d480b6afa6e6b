import { setTimeout as delay } from "node:timers/promises";
import type { FastifyInstance } from "fastify";
import type { Engine } from "../engine.ts";
import type { Database } from "../store/database.ts";

const checkTimeoutMs = 2_000;

async function isReachable(check: () => Promise<unknown>): Promise<boolean> {
  const timer = new AbortController();
  const tooLate = delay(checkTimeoutMs, false, { signal: timer.signal }).catch(() => false);
  const answered = check().then(
    () => true,
    () => false,
  );
  const isInTime = await Promise.race([answered, tooLate]);
  timer.abort();
  return isInTime;
}

/** `/healthz`: the process lives. `/readyz`: what it needs can be reached. Both need no key. */
export function addHealthRoutes(
  app: FastifyInstance,
  parts: { database: Database; engine: Engine; closing: AbortSignal },
): void {
  const options = { exposeHeadRoute: true };
  app.get("/healthz", options, async () => ({ status: "ok" }));
  app.get("/readyz", options, async (_request, reply) => {
    const [database, temporal] = await Promise.all([
      isReachable(() => parts.database.query("SELECT 1")),
      // No workflow has this id; that Temporal says so is the answer.
      isReachable(() => parts.engine.currentRun("turnkeeper-readiness")),
    ]);
    const checks = { database, temporal, gateway: !parts.closing.aborted };
    const isReady = Object.values(checks).every(Boolean);
    const notReadyStatus = 503;
    if (!isReady) reply.code(notReadyStatus);
    const said = Object.entries(checks).map(([part, ok]) => [part, ok ? "ok" : "unreachable"]);
    return { status: isReady ? "ready" : "not ready", ...Object.fromEntries(said) };
  });
}
