import { WorkflowFailedError } from "@temporalio/client";
import type { Client } from "@temporalio/client";

/** Waits until a turn's workflow has closed; that of a failed turn closes as failed. */
export async function workflowEnd(temporal: Client, turnId: string): Promise<void> {
  try {
    await temporal.workflow.getHandle(turnId).result();
  } catch (error) {
    if (!(error instanceof WorkflowFailedError)) throw error;
  }
}
