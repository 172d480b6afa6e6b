import { proxyActivities } from "@temporalio/workflow";
import { conversationTurn as unchanged } from "../../src/workflows/index.ts";

const { audit } = proxyActivities<{ audit(): Promise<void> }>({ startToCloseTimeout: 1_000 });

/** Today's workflow with one activity more, as a careless change would make it. */
export async function conversationTurn(
  ...input: Parameters<typeof unchanged>
): ReturnType<typeof unchanged> {
  await audit();
  return unchanged(...input);
}
