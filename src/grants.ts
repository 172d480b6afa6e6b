import type { Logger } from "pino";
import type { Engine } from "./engine.ts";
import type { Database } from "./store/database.ts";
import { readTurnOfWorkflow } from "./store/turns.ts";
import { isTerminal } from "./turn/turn.ts";

/**
 * Starts the workflow of a turn that an ending has granted its conversation; of one that was passed
 * over it tells the workflow that waits, if there is one. Failing is allowed: the janitor finds
 * admitted turns that nobody started, and who waits looks again.
 */
export function createGrants(
  database: Database,
  engine: Engine,
  log: Logger,
): (turnId: string) => void {
  async function start(turnId: string): Promise<void> {
    const turn = await readTurnOfWorkflow(database, turnId);
    if (turn === null) return;
    // Only a turn that was started directly in Temporal has a workflow before its grant.
    const isAwaited = isTerminal(turn.status) && (await engine.currentRun(turnId))?.isRunning;
    if (turn.status === "admitted" || isAwaited) await engine.startGranted(turn);
  }
  return (turnId) => {
    start(turnId).catch((error: unknown) => {
      log.warn({ turn: turnId, error: String(error) }, "a granted turn is left to the janitor");
    });
  };
}
