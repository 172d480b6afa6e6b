import type { Logger } from "pino";
import type { Engine } from "./engine.ts";
import type { Database } from "./store/database.ts";
import { readTurnOfWorkflow } from "./store/turns.ts";

/**
 * Starts the workflow of a turn that an ending has granted its conversation. Failing is allowed: the
 * janitor finds admitted turns that nobody started.
 */
export function createGrants(
  database: Database,
  engine: Engine,
  log: Logger,
): (turnId: string) => void {
  async function start(turnId: string): Promise<void> {
    const turn = await readTurnOfWorkflow(database, turnId);
    if (turn?.status === "admitted") await engine.startGranted(turn);
  }
  return (turnId) => {
    start(turnId).catch((error: unknown) => {
      log.warn({ turn: turnId, error: String(error) }, "a granted turn is left to the janitor");
    });
  };
}
