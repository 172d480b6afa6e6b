import type { Client } from "@temporalio/client";
import type OpenAI from "openai";
import type { Turnkeeper } from "../src/client.ts";
import { bareTaskQueue } from "./bare/worker.ts";

/** One way to get an answer: the whole of it, or the time of its first token. */
export interface Shape {
  name: string;
  turn(): Promise<unknown>;
  /** Resolves when the first piece of text is there, and reads the rest without waiting for it. */
  firstToken?(): Promise<void>;
}

const input = "What is the answer?";
const model = "gpt-bench";

async function firstDelta(events: AsyncIterable<{ type: string }>): Promise<void> {
  for await (const event of events) {
    if (event.type === "response.output_text.delta") return;
  }
}

export function bareSdk(openai: OpenAI): Shape {
  return {
    name: "bare SDK call",
    turn: () => openai.responses.create({ model, input }),
    firstToken: async () =>
      firstDelta(await openai.responses.create({ model, input, stream: true })),
  };
}

/** @param requestEagerStart the SDK's default is not to. */
export function bareWorkflow(client: Client, requestEagerStart = false): Shape {
  return {
    name: requestEagerStart ? "one-activity workflow, eager start" : "one-activity workflow",
    turn: () =>
      client.workflow.execute("bareTurn", {
        taskQueue: bareTaskQueue,
        workflowId: `bare-${crypto.randomUUID()}`,
        args: [input],
        requestEagerStart,
      }),
  };
}

export function inOneProcess(turnkeeper: Turnkeeper): Shape {
  return {
    name: "Turnkeeper, one process",
    turn: async () => {
      const turn = await turnkeeper.turns.start({ agent: model, input });
      return turn.result();
    },
    firstToken: async () => {
      const turn = await turnkeeper.turns.start({ agent: model, input });
      await firstDelta(turn.events());
    },
  };
}

export function overHttp(openai: OpenAI): Shape {
  return { ...bareSdk(openai), name: "Turnkeeper, worker and gateway apart" };
}
