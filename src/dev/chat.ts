import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import OpenAI from "openai";
import type { Config } from "../config.ts";
import { readModelCalls } from "../store/modelCalls.ts";
import type { DevStack } from "./stack.ts";

/** A turn ended otherwise than with an answer; the message says why. */
export class TurnNotCompleted extends Error {
  override name = "TurnNotCompleted";
}

/** A conversation on the terminal, held by an unchanged OpenAI client. */
export interface Chat {
  /** Whether the conversation was there before this start. */
  isContinued: boolean;
  /** Streams one turn to stdout and says what it cost. @throws TurnNotCompleted. */
  ask(text: string, signal: AbortSignal): Promise<void>;
}

/**
 * Opens the chat.
 *
 * @param isKept whether the conversation is the one kept in the folder, over restarts.
 */
export async function openChat(stack: DevStack, config: Config, isKept: boolean): Promise<Chat> {
  const client = new OpenAI({ baseURL: `${stack.gatewayUrl}/v1`, apiKey: "none", maxRetries: 0 });
  const kept = join(config.folder, "chat.json");
  const known = isKept ? await findKept(client, kept) : null;
  const conversation = known ?? (await client.conversations.create()).id;
  if (isKept) await writeFile(kept, JSON.stringify({ conversation }));
  return {
    isContinued: known !== null,
    ask: async (text, signal) => {
      const turnId = await streamTurn(client, conversation, text, signal);
      console.log(`\n\n${await summary(stack, turnId)}`);
    },
  };
}

async function findKept(client: OpenAI, file: string): Promise<string | null> {
  try {
    const { conversation } = JSON.parse(await readFile(file, "utf8")) as { conversation: string };
    return (await client.conversations.retrieve(conversation)).id;
  } catch {
    return null;
  }
}

async function streamTurn(
  client: OpenAI,
  conversation: string,
  text: string,
  signal: AbortSignal,
): Promise<string> {
  const stream = await client.responses.create(
    { input: text, conversation, stream: true },
    { signal },
  );
  let turnId = "";
  for await (const event of stream) {
    if (event.type === "response.created") turnId = event.response.id;
    else if (event.type === "response.output_text.delta") process.stdout.write(event.delta);
    else if (event.type === "response.mcp_call.in_progress") process.stdout.write("[tool] ");
    else if (event.type === "response.failed") {
      throw new TurnNotCompleted(`The turn ${turnId} failed: ${event.response.error?.message}`);
    } else if (event.type === "response.incomplete") {
      throw new TurnNotCompleted(`The turn ${turnId} is ${event.response.status}.`);
    }
  }
  return turnId;
}

/** What a turn cost, and where to look at it. */
async function summary(stack: DevStack, turnId: string): Promise<string> {
  const calls = await readModelCalls(stack.database, "default", turnId);
  const tokens = calls.reduce(
    (sum, call) => sum + (call.tokens?.inputTokens ?? 0) + (call.tokens?.outputTokens ?? 0),
    0,
  );
  const isPriced = calls.every((call) => call.costUsd !== null);
  const dollars = calls.reduce((sum, call) => sum + (call.costUsd ?? 0), 0);
  const costDigits = 6;
  const price = isPriced ? `$${dollars.toFixed(costDigits)}` : "price unknown";
  const cost = stack.isSimulated ? `nothing (simulated; as a real call ${price})` : price;
  const calledModel = `${calls.length} model call${calls.length === 1 ? "" : "s"}`;
  const lines = [`turn ${turnId}: ${calledModel}, ${tokens} tokens, cost ${cost}`];
  if (stack.workflowsUrl !== null) lines.push(`${stack.workflowsUrl}/${turnId}`);
  return lines.join("\n");
}
