import { proxyActivities } from "@temporalio/workflow";

const { callModelBare } = proxyActivities<{ callModelBare(input: string): Promise<string> }>({
  startToCloseTimeout: 60_000,
});

/** What an application would write without Turnkeeper: one workflow around one model call. */
export async function bareTurn(input: string): Promise<string> {
  return callModelBare(input);
}
