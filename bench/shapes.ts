import type { Client } from "@temporalio/client";
import type OpenAI from "openai";
import type { Turnkeeper } from "../src/client.ts";
import { bareTaskQueue } from "./bare/worker.ts";

/** One way to get an answer: the whole of it, or the time of its first token. */
export interface Shape {
  name: string;
  /** Resolves with the turn's id, where it has one. */
  turn(): Promise<string>;
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
    turn: async () => (await openai.responses.create({ model, input })).id,
    firstToken: async () =>
      firstDelta(await openai.responses.create({ model, input, stream: true })),
  };
}

/** @param requestEagerStart the SDK's default is not to. */
export function bareWorkflow(client: Client, requestEagerStart = false): Shape {
  return {
    name: requestEagerStart ? "one-activity workflow, eager start" : "one-activity workflow",
    async turn() {
      const workflowId = `bare-${crypto.randomUUID()}`;
      await client.workflow.execute("bareTurn", {
        taskQueue: bareTaskQueue,
        workflowId,
        args: [input],
        requestEagerStart,
      });
      return workflowId;
    },
  };
}

export function inOneProcess(turnkeeper: Turnkeeper): Shape {
  return {
    name: "Turnkeeper, one process",
    turn: async () => {
      const turn = await turnkeeper.turns.start({ model, input });
      await turn.result();
      return turn.id;
    },
    firstToken: async () => {
      const turn = await turnkeeper.turns.start({ model, input });
      await firstDelta(turn.events());
    },
  };
}

export function overHttp(openai: OpenAI): Shape {
  return { ...bareSdk(openai), name: "Turnkeeper, worker and gateway apart" };
}
