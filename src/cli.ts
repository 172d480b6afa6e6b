#!/usr/bin/env node
import { Command, InvalidArgumentError } from "commander";
import { InvalidConfig, readConfig } from "./config.ts";
import type { Config } from "./config.ts";
import { TurnNotCompleted } from "./dev/chat.ts";
import { PortTakenError } from "./dev/ports.ts";
import { DataFolderInUseError } from "./dev/lockFile.ts";
import { Refusal } from "./turn/failures.ts";

const program = new Command("turnkeeper")
  .description("AI conversations that cannot be lost: durable turns behind the Responses API.")
  .showHelpAfterError();

program
  .command("dev")
  .description("run everything in one process, with a first turn and a prompt to chat")
  .option("--once <text>", "run one turn with this text and exit: 0, or 1 with the reason")
  .option("--port <port>", "port of the HTTP API; default the first free one from 7823", parsePort)
  .action(async (options: { once?: string; port?: number }) => {
    const { runDev } = await import("./commands/dev.ts");
    await runDev(configWith(options.port), options.once ?? null);
  });

program
  .command("worker")
  .description("run turns: model calls and tools")
  .action(async () => {
    const { runWorker } = await import("./commands/worker.ts");
    await runWorker(readConfig());
  });

program
  .command("gateway")
  .description("serve the Responses API over HTTP")
  .option("--port <port>", "port to listen on; default TURNKEEPER_PORT or 7823", parsePort)
  .action(async (options: { port?: number }) => {
    const { runGateway } = await import("./commands/gateway.ts");
    await runGateway(configWith(options.port));
  });

program
  .command("serve")
  .description("gateway and worker in one process: the fastest first token")
  .option("--port <port>", "port to listen on; default TURNKEEPER_PORT or 7823", parsePort)
  .action(async (options: { port?: number }) => {
    const { runServe } = await import("./commands/serve.ts");
    await runServe(configWith(options.port));
  });

const key = program.command("key").description("manage API keys of the gateway");

key
  .command("create")
  .description("create a key and print its secret, once")
  .option("--project <id>", "the project that the key belongs to", "default")
  .option("--name <name>", "who or what the key is for", "unnamed")
  .action(async (options: { project: string; name: string }) => {
    const { createKey } = await import("./commands/keys.ts");
    await createKey(readConfig(), options.project, options.name);
  });

key
  .command("list")
  .description("list the keys, without their secrets")
  .action(async () => {
    const { listKeys } = await import("./commands/keys.ts");
    await listKeys(readConfig());
  });

key
  .command("revoke <id>")
  .description("make a key invalid")
  .action(async (id: string) => {
    const { revokeKey } = await import("./commands/keys.ts");
    await revokeKey(readConfig(), id);
  });

function parsePort(text: string): number {
  const port = Number(text);
  const maxPort = 65_535;
  if (Number.isInteger(port) && port >= 0 && port <= maxPort) return port;
  throw new InvalidArgumentError(`A port is a whole number from 0 to ${maxPort}.`);
}

function configWith(port: number | undefined): Config {
  return readConfig(port === undefined ? {} : { port });
}

/** Errors that say all there is to say; others are defects and show where they are. */
function isExpected(error: unknown): error is Error {
  const expected = [InvalidConfig, PortTakenError, DataFolderInUseError, TurnNotCompleted, Refusal];
  return expected.some((type) => error instanceof type);
}

try {
  await program.parseAsync();
  process.exit();
} catch (error) {
  console.error(isExpected(error) ? `turnkeeper: ${error.message}` : error);
  process.exit(1);
}
