import { z } from "zod";
import type { Durability } from "./turn/agent.ts";
import { defaultTaskQueue } from "./turn/engineNames.ts";
import { maxTimerMs } from "./turn/limits.ts";

/**
 * Every setting: an option given in code wins over the environment, which wins over the default.
 * Temporal's own (`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, TLS, profiles) are
 * read by `@temporalio/envconfig`, so that Temporal Cloud works by its usual variables.
 */

/** A setting that is missing or wrong, said in one line per setting. */
export class InvalidConfig extends Error {
  readonly code = "invalid_config";

  constructor(problems: readonly string[]) {
    super(`The configuration is not usable:\n${problems.map((each) => `  ${each}`).join("\n")}`);
    this.name = "InvalidConfig";
  }
}

const port = z.coerce.number().int().min(0).max(65_535);
const count = z.coerce.number().int().min(1);
const milliseconds = z.coerce.number().int().min(1).max(maxTimerMs);

const maxBodyBytesDefault = 16 * 1024 * 1024;

/** Environment variables, their checks and their defaults; the README's table lists the same. */
export const environment = z.object({
  DATABASE_URL: z.url({ protocol: /^postgres(ql)?$/ }).optional(),
  OPENAI_API_KEY: z.string().min(1).optional(),
  OPENAI_BASE_URL: z.url().optional(),
  TURNKEEPER_MODEL: z.string().min(1).default("gpt-6.1-terra"),
  TURNKEEPER_DURABILITY: z.enum(["foreground", "background"]).default("foreground"),
  TURNKEEPER_TASK_QUEUE: z.string().min(1).default(defaultTaskQueue),
  TURNKEEPER_HOST: z.string().min(1).default("127.0.0.1"),
  TURNKEEPER_PORT: port.default(7823),
  TURNKEEPER_URL: z.url({ protocol: /^https?$/ }).optional(),
  TURNKEEPER_TEMPORAL_UI_URL: z.url({ protocol: /^https?$/ }).optional(),
  TURNKEEPER_API_KEY: z.string().min(1).optional(),
  TURNKEEPER_MAX_BODY_BYTES: count.default(maxBodyBytesDefault),
  TURNKEEPER_MAX_CONCURRENT_STEPS: count.default(250),
  TURNKEEPER_MAX_DATABASE_CONNECTIONS: count.default(20),
  TURNKEEPER_CONNECT_TIMEOUT_MS: milliseconds.default(10_000),
  TURNKEEPER_HEADERS_TIMEOUT_MS: milliseconds.default(600_000),
  TURNKEEPER_SHUTDOWN_GRACE_MS: milliseconds.default(20_000),
  TURNKEEPER_EVENT_RETENTION_DAYS: count.default(30),
  TURNKEEPER_JANITOR_ROUND_MS: milliseconds.default(10_000),
  TURNKEEPER_JANITOR_PATIENCE_MS: milliseconds.default(10_000),
  TURNKEEPER_APP: z.string().min(1).optional(),
  TURNKEEPER_FOLDER: z.string().min(1).default(".turnkeeper"),
  TURNKEEPER_WORKFLOW_BUNDLE: z.string().min(1).optional(),
  TURNKEEPER_DEPLOYMENT_NAME: z.string().min(1).optional(),
  TURNKEEPER_BUILD_ID: z.string().min(1).optional(),
  TURNKEEPER_LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info"),
});

/** A version of a deployment of workers, as Temporal knows it. */
export interface WorkerVersion {
  deploymentName: string;
  buildId: string;
}

export interface Config {
  /** `null`: the embedded database of `turnkeeper dev`. */
  databaseUrl: string | null;
  maxDatabaseConnections: number;
  /** `null`: the simulator of `turnkeeper dev`. */
  openaiApiKey: string | null;
  openaiBaseUrl: string;
  /** The model of the default agent. */
  model: string;
  /** What becomes of the default agent's calls when their worker dies. */
  durability: Durability;
  connectTimeoutMs: number;
  headersTimeoutMs: number;
  taskQueue: string;
  /** Whether the queue was set by hand: then `npm start` uses it too. */
  isTaskQueueGiven: boolean;
  host: string;
  port: number;
  /** Whether the port was set by hand: then it is never stepped over. */
  isPortGiven: boolean;
  /** Of the Temporal UI, for links to workflows; `null`: not known. */
  temporalUiUrl: string | null;
  /** The gateway that commands such as `turnkeeper turn list` ask. */
  gatewayUrl: string;
  /** The key that these commands send, and the chat of a first run; `null`: none. */
  gatewayApiKey: string | null;
  maxBodyBytes: number;
  /** Model calls and tool calls that one worker runs at a time. */
  maxConcurrentSteps: number;
  shutdownGraceMs: number;
  /** How long events can be streamed again after their turn's day. */
  eventRetentionDays: number;
  janitorRoundMs: number;
  /** A turn younger than this is left to whoever admitted it. */
  janitorPatienceMs: number;
  /** Module that exports `agents` and `tools`. */
  app: string | null;
  /** Where a first run keeps its data. */
  folder: string;
  workflowBundle: string | null;
  /** This worker's version in Temporal's worker versioning; `null`: off. */
  deployment: WorkerVersion | null;
  logLevel: string;
}

function deploymentOf(name: string | undefined, buildId: string | undefined): WorkerVersion | null {
  if (name === undefined && buildId === undefined) return null;
  if (name !== undefined && buildId !== undefined) return { deploymentName: name, buildId };
  throw new InvalidConfig([
    "TURNKEEPER_DEPLOYMENT_NAME, TURNKEEPER_BUILD_ID: set both, or none for workers without versions.",
  ]);
}

/**
 * Reads the configuration.
 *
 * @throws InvalidConfig naming every variable that is wrong.
 */
export function readConfig(
  options: Partial<Config> = {},
  variables: NodeJS.ProcessEnv = process.env,
): Config {
  const given = Object.fromEntries(Object.entries(variables).filter(([, value]) => value !== ""));
  const read = environment.safeParse(given);
  if (!read.success) {
    throw new InvalidConfig(
      read.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`),
    );
  }
  const env = read.data;
  return {
    databaseUrl: env.DATABASE_URL ?? null,
    maxDatabaseConnections: env.TURNKEEPER_MAX_DATABASE_CONNECTIONS,
    openaiApiKey: env.OPENAI_API_KEY ?? (env.OPENAI_BASE_URL === undefined ? null : "none"),
    openaiBaseUrl: env.OPENAI_BASE_URL ?? "https://api.openai.com/v1",
    model: env.TURNKEEPER_MODEL,
    durability: env.TURNKEEPER_DURABILITY,
    connectTimeoutMs: env.TURNKEEPER_CONNECT_TIMEOUT_MS,
    headersTimeoutMs: env.TURNKEEPER_HEADERS_TIMEOUT_MS,
    taskQueue: env.TURNKEEPER_TASK_QUEUE,
    isTaskQueueGiven: given["TURNKEEPER_TASK_QUEUE"] !== undefined,
    host: env.TURNKEEPER_HOST,
    port: env.TURNKEEPER_PORT,
    isPortGiven: given["TURNKEEPER_PORT"] !== undefined || options.port !== undefined,
    temporalUiUrl: env.TURNKEEPER_TEMPORAL_UI_URL ?? null,
    gatewayUrl: env.TURNKEEPER_URL ?? `http://127.0.0.1:${env.TURNKEEPER_PORT}`,
    gatewayApiKey: env.TURNKEEPER_API_KEY ?? null,
    maxBodyBytes: env.TURNKEEPER_MAX_BODY_BYTES,
    maxConcurrentSteps: env.TURNKEEPER_MAX_CONCURRENT_STEPS,
    shutdownGraceMs: env.TURNKEEPER_SHUTDOWN_GRACE_MS,
    eventRetentionDays: env.TURNKEEPER_EVENT_RETENTION_DAYS,
    janitorRoundMs: env.TURNKEEPER_JANITOR_ROUND_MS,
    janitorPatienceMs: env.TURNKEEPER_JANITOR_PATIENCE_MS,
    app: env.TURNKEEPER_APP ?? null,
    folder: env.TURNKEEPER_FOLDER,
    workflowBundle: env.TURNKEEPER_WORKFLOW_BUNDLE ?? null,
    deployment: deploymentOf(env.TURNKEEPER_DEPLOYMENT_NAME, env.TURNKEEPER_BUILD_ID),
    logLevel: env.TURNKEEPER_LOG_LEVEL,
    ...options,
  };
}
