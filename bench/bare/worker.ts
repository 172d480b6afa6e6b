import { fileURLToPath } from "node:url";
import type { NativeConnection } from "@temporalio/worker";
import { Worker } from "@temporalio/worker";
import type OpenAI from "openai";

export const bareTaskQueue = "bench-bare";

/** A worker of the bare one-activity workflow, with the SDK's defaults. */
export function createBareWorker(connection: NativeConnection, openai: OpenAI): Promise<Worker> {
  return Worker.create({
    connection,
    taskQueue: bareTaskQueue,
    workflowsPath: fileURLToPath(new URL("./workflow.ts", import.meta.url)),
    activities: {
      async callModelBare(input: string): Promise<string> {
        const response = await openai.responses.create({ model: "gpt-bench", input });
        return response.output_text;
      },
    },
  });
}
