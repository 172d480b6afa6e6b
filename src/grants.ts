import type { Logger } from "pino";
import type { Engine } from "./engine.ts";
import type { Database } from "./store/database.ts";
import type { Aftermath } from "./store/endings.ts";
import { readTurnOfWorkflow } from "./store/turns.ts";

/**
 * Tells the workflows that wait for an ending: the one of the turn that was granted its conversation
 * is started, those of turns that were passed over are told to look at the record. Failing is
 * allowed: the janitor finds admitted turns that nobody started, and who waits looks again.
 */
export async function tellWorkflows(
  database: Database,
  engine: Engine,
  { turns, granted }: Aftermath,
  log?: Logger,
): Promise<void> {
  const quietly = async (turnId: string, work: () => Promise<void>): Promise<void> => {
    await work().catch((error: unknown) => {
      log?.warn({ turn: turnId, error: String(error) }, "the workflow of a turn was not told");
    });
  };
  const passedOver = turns.slice(1);
  await Promise.all([
    granted !== null && quietly(granted, () => startGranted(database, engine, granted)),
    ...passedOver.map(({ id }) => quietly(id, () => tellPassedOver(database, engine, id))),
  ]);
}

async function startGranted(database: Database, engine: Engine, turnId: string): Promise<void> {
  const turn = await readTurnOfWorkflow(database, turnId);
  if (turn?.status === "admitted") await engine.startGranted(turn);
}

/** Only a turn that was started directly in Temporal has a workflow, which waits for its grant. */
async function tellPassedOver(database: Database, engine: Engine, turnId: string): Promise<void> {
  const run = await engine.currentRun(turnId);
  if (!run?.isRunning) return;
  const turn = await readTurnOfWorkflow(database, turnId);
  if (turn !== null) await engine.startGranted(turn);
}
