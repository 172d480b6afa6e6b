import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import OpenAI from "openai";
import { InvalidConfig } from "../config.ts";
import type { Config } from "../config.ts";
import type { TurnStory } from "../gateway/turnObject.ts";
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
 * @throws InvalidConfig when the gateway needs an API key and has not been given a valid one.
 */
export async function openChat(stack: DevStack, config: Config, isKept: boolean): Promise<Chat> {
  const baseURL = `${stack.gatewayUrl}/v1`;
  const client = new OpenAI({ baseURL, apiKey: config.gatewayApiKey ?? "none", maxRetries: 0 });
  const kept = join(config.folder, "chat.json");
  const known = isKept ? await findKept(client, kept) : null;
  const conversation = known ?? (await makeConversation(client, config));
  if (isKept) await writeFile(kept, JSON.stringify({ conversation }));
  return {
    isContinued: known !== null,
    ask: async (text, signal) => {
      const turnId = await streamTurn(client, conversation, text, signal);
      console.log(`\n\n${await summary(stack, client, turnId)}`);
    },
  };
}

async function makeConversation(client: OpenAI, config: Config): Promise<string> {
  try {
    return (await client.conversations.create()).id;
  } catch (error) {
    if (!(error instanceof OpenAI.AuthenticationError)) throw error;
    const problem = config.gatewayApiKey === null ? "there are" : "it is none of the";
    throw new InvalidConfig([
      `TURNKEEPER_API_KEY: ${problem} API keys in this database; set it to one that 'turnkeeper key create' has made.`,
    ]);
  }
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
async function summary(stack: DevStack, client: OpenAI, turnId: string): Promise<string> {
  const path = `${stack.gatewayUrl}/turnkeeper/v1/turns/${turnId}`;
  const { model_calls: calls, cost: total }: TurnStory = await client.get(path);
  const tokens = calls.reduce(
    (sum, call) => sum + (call.input_tokens ?? 0) + (call.output_tokens ?? 0),
    0,
  );
  const costDigits = 6;
  const price = total.is_complete ? `$${total.usd.toFixed(costDigits)}` : "price unknown";
  const cost = stack.isSimulated ? `nothing (simulated; as a real call ${price})` : price;
  const calledModel = `${calls.length} model call${calls.length === 1 ? "" : "s"}`;
  const lines = [`turn ${turnId}: ${calledModel}, ${tokens} tokens, cost ${cost}`];
  if (stack.workflowsUrl !== null) lines.push(`${stack.workflowsUrl}/${turnId}`);
  return lines.join("\n");
}
