import { setTimeout as delay } from "node:timers/promises";
import { WorkflowNotFoundError } from "@temporalio/client";
import type { WorkflowExecutionDescription } from "@temporalio/client";
import type { Lane } from "./lane.ts";

const lookEveryMs = 100;

interface LeftRow {
  steps: number;
  conversations: number;
  calls: number;
  transactions: number;
  waiting: number;
}

/** What is left behind in the database by turns of which none runs any more; empty when nothing is. */
async function leftInDatabase({ database }: Lane): Promise<string[]> {
  const [row] = await database.query<LeftRow>(
    `SELECT
       (SELECT count(*) FROM steps WHERE state IN ('running', 'scheduled')) AS steps,
       (SELECT count(*) FROM conversations WHERE holder_turn_id IS NOT NULL) AS conversations,
       (SELECT count(*) FROM model_calls WHERE outcome = 'open') AS calls,
       (SELECT count(*) FROM pg_stat_activity
        WHERE application_name LIKE 'turnkeeper%' AND state LIKE 'idle in transaction%') AS transactions,
       (SELECT count(*) FROM pg_locks WHERE NOT granted) AS waiting`,
    [],
  );
  const left: [number | undefined, string][] = [
    [row?.steps, "steps run"],
    [row?.conversations, "conversations are held"],
    [row?.calls, "calls are open in the ledger"],
    [row?.transactions, "transactions are open"],
    [row?.waiting, "locks are waited for"],
  ];
  return left.flatMap(([count, what]) => (count ? [`${count} ${what}`] : []));
}

/** The workflow of a turn as Temporal has it; `null` where it knows none. */
export async function describeWorkflow(
  lane: Lane,
  turnId: string,
): Promise<WorkflowExecutionDescription | null> {
  const describe = async () => {
    try {
      return await lane.temporal.workflow.getHandle(turnId).describe();
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return null;
      throw error;
    }
  };
  // A call on its way while something was struck fails once.
  return describe().catch(describe);
}

/** `TIMEOUT_TYPE_START_TO_CLOSE` of Temporal's API. */
const startToClose = 1;

/** Whether a worker died with a workflow task of the turn: its history says so. */
export async function lostWorkflowTask(lane: Lane, turnId: string): Promise<boolean> {
  // A turn that a head start has ended before Temporal was told of it has no workflow.
  if ((await describeWorkflow(lane, turnId)) === null) return false;
  const { events } = await lane.temporal.workflow.getHandle(turnId).fetchHistory();
  return (events ?? []).some(
    (event) => event.workflowTaskTimedOutEventAttributes?.timeoutType === startToClose,
  );
}

async function whatRuns(lane: Lane, turnIds: readonly string[]): Promise<string[]> {
  const left = await leftInDatabase(lane);
  if (lane.simulator.connections() > 0) left.push("the model's streams are open");
  for (const turnId of turnIds) {
    const workflow = await describeWorkflow(lane, turnId);
    if (workflow?.status.name === "RUNNING") left.push(`the workflow of ${turnId} runs`);
  }
  return left;
}

/**
 * Waits until all processes run again and nothing of these turns goes on anywhere.
 *
 * @returns what is left behind after `withinMs`; empty when nothing is.
 */
export async function untilQuiet(
  lane: Lane,
  turnIds: readonly string[],
  withinMs: number,
): Promise<string[]> {
  const giveUpAt = performance.now() + withinMs;
  for (;;) {
    const left = await whatRuns(lane, turnIds).catch((error: unknown) => [String(error)]);
    if (left.length === 0) break;
    if (performance.now() > giveUpAt) return left;
    await delay(lookEveryMs);
  }
  await lane.ready();
  return [];
}
