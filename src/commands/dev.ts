import { createInterface } from "node:readline/promises";
import type { Config } from "../config.ts";
import { openChat } from "../dev/chat.ts";
import type { Chat } from "../dev/chat.ts";
import { startDevStack } from "../dev/stack.ts";
import type { DevStack } from "../dev/stack.ts";
import { createLog, shutdownSignal } from "./parts.ts";

const firstMessage = "Hello! What time is it in Berlin?";

/**
 * `turnkeeper dev`: starts everything and runs a first turn; then stays up, with a prompt where there
 * is a terminal. With `once`, runs one turn with that text and returns; a turn that does not
 * complete throws with the reason.
 */
export async function runDev(config: Config, once: string | null): Promise<void> {
  const signal = shutdownSignal();
  // On a terminal the log would get between question and answer; errors still do.
  const log = createLog(config.logLevel === "info" ? { ...config, logLevel: "error" } : config);
  const say = progress();
  const stack = await startDevStack(config, log, say, signal);
  try {
    say("ready");
    const chat = await openChat(stack, config, once === null);
    if (once !== null) {
      await chat.ask(once, signal);
      return;
    }
    await introduce(stack, chat, signal);
    await stayUp(stack, chat, signal);
  } finally {
    console.error("\nstopping");
    await stack.close();
  }
}

/** One line per step, with the seconds since the start. */
function progress(): (step: string) => void {
  const startedAt = performance.now();
  return (step) => {
    const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
    console.error(`[${seconds.padStart(5)} s] ${step}`);
  };
}

async function introduce(stack: DevStack, chat: Chat, signal: AbortSignal): Promise<void> {
  console.log(`\nResponses API   ${stack.gatewayUrl}/v1`);
  const at = stack.temporalAddress === null ? "" : `, Temporal at ${stack.temporalAddress}`;
  console.log(`Task queue      ${stack.taskQueue}${at}`);
  if (stack.temporalUiUrl !== null) console.log(`Temporal UI     ${stack.temporalUiUrl}`);
  if (stack.isSimulated)
    console.log("Model           simulated; set OPENAI_API_KEY for a real one");
  if (chat.isContinued) console.log("\nThe conversation goes on where it was left.");
  else {
    console.log(`\n> ${firstMessage}\n`);
    await chat.ask(firstMessage, signal).catch(showFailure);
  }
}

/** A failed turn is an answer too: the process stays up. */
function showFailure(error: unknown): void {
  console.error(`\n${error instanceof Error ? error.message : String(error)}`);
}

async function stayUp(stack: DevStack, chat: Chat, signal: AbortSignal): Promise<void> {
  const stopped = new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve());
  });
  const chatting = process.stdin.isTTY ? converse(chat, signal) : stopped;
  await Promise.race([stopped, chatting, stack.broken]);
}

async function converse(chat: Chat, signal: AbortSignal): Promise<void> {
  const prompt = createInterface({ input: process.stdin, output: process.stdout });
  // In raw mode the terminal hands Ctrl-C to readline instead of raising a signal.
  prompt.on("SIGINT", () => process.kill(process.pid, "SIGINT"));
  console.log("\nType a message; Ctrl-C or Ctrl-D stops.");
  try {
    for (;;) {
      const line = await prompt.question("\n> ", { signal });
      if (line.trim() !== "") await chat.ask(line, signal).catch(showFailure);
    }
  } catch {
    // The prompt was closed: the user is done.
  } finally {
    prompt.close();
  }
}
