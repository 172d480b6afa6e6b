#!/usr/bin/env node
import module from "node:module";
import { join } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import { InvalidConfig, readConfig } from "./config.ts";
import type { Config } from "./config.ts";
import { TurnNotCompleted } from "./dev/chat.ts";
import { PortTakenError } from "./dev/ports.ts";
import type { ShowCost } from "./commands/cost.ts";
import { parseTime } from "./commands/figures.ts";
import { GatewayRefused } from "./commands/gatewayClient.ts";
import type { ReplayTurns } from "./commands/replay.ts";
import type { ListTurns } from "./commands/turns.ts";
import { Stopped } from "./commands/waiting.ts";
import { DataFolderInUseError } from "./dev/lockFile.ts";
import { cacheFolder } from "../setup/cacheFolder.mjs";
import { costSubjects } from "./store/costs.ts";
import { Refusal } from "./turn/failures.ts";

// Started again, after a deploy or a crash, a process is up half a second sooner. In a folder of the user's
// own, for what lies there is run; Node 20 has no such cache.
(module as Partial<typeof module>).enableCompileCache?.(join(cacheFolder(), "compiled"));

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

const turn = program
  .command("turn")
  .description("look at turns and replay them, by way of a gateway");

toGateway(turn.command("list"))
  .description("list turns, newest first")
  .option(
    "--status <status>",
    "queued, admitted, running, completed, incomplete, failed, cancelled",
  )
  .option("--conversation <id>", "only turns of this conversation")
  .option("--agent <name>", "only turns of this agent")
  .option(
    "--since <time>",
    "only turns created since then: ISO 8601, or an age such as 24h",
    parseTime,
  )
  .option("--until <time>", "only turns created before then", parseTime)
  .option("--limit <count>", "at most so many, up to 100", "20")
  .option("--after <turn>", "go on behind this turn of an earlier list")
  .addHelpText("after", "\nExample: turnkeeper turn list --status failed --since 24h")
  .action(async (options: GatewayOptions & ListTurns) => {
    const { listTurns } = await import("./commands/turns.ts");
    await listTurns(gatewayConfig(options), options);
  });

toGateway(turn.command("show <id>"))
  .description("tell the story of a turn: its steps, attempts, waits, failures, tokens and cost")
  .addHelpText("after", "\nExample: turnkeeper turn show resp_0192f3c1a7b4c0ffee")
  .action(async (id: string, options: GatewayOptions) => {
    const { showTurn } = await import("./commands/turns.ts");
    await showTurn(gatewayConfig(options), id, options);
  });

const replayCommand = toGateway(turn.command("replay [id]"))
  .description("replay an ended turn, or all that a query finds, and wait for the end")
  .option(
    "--from-start",
    "run all steps again; by default finished ones are taken over, not paid again",
  )
  .option("--model <model>", "with this model of the provider, from the start")
  .option("--instructions <text>", "with these instructions, from the start")
  .option(
    "--tools <names>",
    "with these tools of agents, separated by commas, from the start",
    parseNames,
  )
  .addOption(
    new Option("--context-strategy <name>", "with this strategy, from the start").choices(["full"]),
  )
  .option("--fork", "in a new conversation, also where it could go on in its own")
  .option("--dry-run", "where nobody sees it, and compare: status, text, steps, tokens, cost")
  .option("--allow-effects", "run all calls of tools again; by default recorded outcomes are used")
  .addOption(
    new Option("--status <status>", "a query: all turns of this status").choices([
      "failed",
      "incomplete",
      "cancelled",
      "completed",
    ]),
  )
  .option("--agent <name>", "of them those of this agent")
  .option("--conversation <id>", "of them those of this conversation")
  .option("--since <time>", "created since then: ISO 8601, or an age such as 24h", parseTime)
  .option("--until <time>", "created before then", parseTime)
  .option("--limit <count>", "at most so many, the newest", parseCount, 1_000)
  .option("--concurrency <count>", "so many at a time", parseCount, 4)
  .addHelpText(
    "after",
    `
A failed turn goes on in its conversation if nothing has come after it; every other replay runs in a
fork. The exit code is 0 if all replays have completed, else 1.

Examples:
  turnkeeper turn replay resp_0192f3c1a7b4c0ffee
  turnkeeper turn replay resp_0192f3c1a7b4c0ffee --model gpt-5-mini --dry-run
  turnkeeper turn replay --status failed --since 2h`,
  )
  .action(async (id: string | undefined, options: GatewayOptions & ReplayTurns) => {
    if ((id === undefined) === (options.status === undefined)) {
      replayCommand.error("error: name a turn, or a query with --status");
    }
    const ofQueries = ["agent", "conversation", "since", "until", "limit", "concurrency"];
    const given = ofQueries.find((name) => replayCommand.getOptionValueSource(name) === "cli");
    if (id !== undefined && given !== undefined) {
      replayCommand.error(`error: --${given} is for a query with --status; a turn is named here`);
    }
    const { replayTurns } = await import("./commands/replay.ts");
    await replayTurns(gatewayConfig(options), id, options);
  });

toGateway(program.command("cost"))
  .description("tell what model calls have cost, wasted ones included")
  .addOption(
    new Option("--by <subject>", "what to add up by").choices(costSubjects).default("agent"),
  )
  .option("--since <time>", "only calls since then: ISO 8601, or an age such as 7d", parseTime)
  .option("--until <time>", "only calls before then", parseTime)
  .option("--limit <count>", "at most so many lines, up to 100", "20")
  .addHelpText("after", "\nExample: turnkeeper cost --by day --since 7d")
  .action(async (options: GatewayOptions & ShowCost) => {
    const { showCost } = await import("./commands/cost.ts");
    await showCost(gatewayConfig(options), options);
  });

/** What every command has that asks a gateway. */
interface GatewayOptions {
  url?: string;
  json?: boolean;
}

function toGateway(command: Command): Command {
  return command
    .option(
      "--url <url>",
      "the gateway; default TURNKEEPER_URL, else port TURNKEEPER_PORT or 7823 of 127.0.0.1",
      parseUrl,
    )
    .option("--json", "print the gateway's answer as JSON")
    .addHelpText("after", "\nThe API key that the gateway asks for is TURNKEEPER_API_KEY.");
}

function gatewayConfig({ url }: GatewayOptions): Config {
  return readConfig(url === undefined ? {} : { gatewayUrl: url });
}

function parseUrl(text: string): string {
  if (URL.canParse(text) && /^https?:$/.test(new URL(text).protocol)) return text;
  throw new InvalidArgumentError("A URL such as http://127.0.0.1:7823 is needed.");
}

function parseNames(text: string): string[] {
  return text.split(",").flatMap((name) => name.trim() || []);
}

function parseCount(text: string): number {
  const count = Number(text);
  if (Number.isInteger(count) && count > 0) return count;
  throw new InvalidArgumentError("A whole number above 0 is needed.");
}

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
  const expected = [
    InvalidConfig,
    PortTakenError,
    DataFolderInUseError,
    TurnNotCompleted,
    Refusal,
    GatewayRefused,
  ];
  return expected.some((type) => error instanceof type);
}

try {
  await program.parseAsync();
  process.exit();
} catch (error) {
  if (error instanceof Stopped) process.exit();
  console.error(isExpected(error) ? `turnkeeper: ${error.message}` : error);
  process.exit(1);
}
