import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "@temporalio/worker";
import type { InjectedSinks, NativeConnection, WorkerOptions } from "@temporalio/worker";
import type { Client } from "@temporalio/client";
import type { Logger } from "pino";
import { createAgentReader } from "./activities/agentReader.ts";
import { createCancelRelay } from "./activities/askToCancel.ts";
import { createTurnActivities } from "./activities/index.ts";
import { HeadStarts } from "./activities/headStarts.ts";
import { ModelPauses } from "./activities/modelPauses.ts";
import { OfferedTurns } from "./activities/offeredTurns.ts";
import type { Parts } from "./activities/parts.ts";
import { ResponseCanceller } from "./activities/cancelResponse.ts";
import { RunningTurns } from "./activities/runningTurns.ts";
import { TemporalWatch } from "./activities/temporalWatch.ts";
import type { HeadStart } from "./clientParts.ts";
import type { Config, WorkerVersion } from "./config.ts";
import { createEngine, findSearchAttributes } from "./engine.ts";
import type { Engine } from "./engine.ts";
import { createGrants } from "./grants.ts";
import type { EventHub } from "./events/hub.ts";
import { Announcer } from "./events/announcer.ts";
import { defaultEventWriterSettings, EventWriter, inProcessTickMs } from "./events/writer.ts";
import { Janitor } from "./janitor.ts";
import type { JanitorSettings } from "./janitor.ts";
import type { ModelEndpoint } from "./responses/call.ts";
import { registerAgents } from "./store/agents.ts";
import type { Database } from "./store/database.ts";
import type { Tool } from "./tools/defineTool.ts";
import { createToolRegistry } from "./tools/registry.ts";
import type { ToolRegistry } from "./tools/registry.ts";
import type { Agent } from "./turn/agent.ts";
import type { TurnSinks } from "./workflows/sinks.ts";

export interface TurnWorkerOptions {
  connection: NativeConnection;
  client: Client;
  taskQueue: string;
  database: Database;
  endpoint: ModelEndpoint;
  agents: readonly Agent[];
  tools: readonly Tool[];
  log: Logger;
  /** A hub in this process gets events as soon as they are committed. */
  hub?: EventHub;
  /** Path of a prebuilt workflow bundle; without it the workflows are bundled at start (1.5 s). */
  workflowBundle?: string | null;
  /** The worker's version, where Temporal decides which version gets which turn; default: none. */
  deployment?: WorkerVersion | null;
  /** Model calls and tool calls that run here at a time. */
  maxConcurrentSteps: number;
  /** Running calls have this long to end after a shutdown began; then others take them over. */
  shutdownGraceMs: number;
  janitor?: Partial<JanitorSettings>;
}

export interface TurnWorker {
  readonly engine: Engine;
  /** Begins a turn that this process has just admitted, while Temporal is being told. */
  headStart: HeadStart;
  /** Resolves when the worker has stopped; rejects when it broke. */
  run(): Promise<void>;
  /**
   * Stops taking work and lets running calls end, within `shutdownGraceMs`. Before `run`, it makes
   * that return at once.
   */
  shutdown(): void;
}

/** What the configuration says of a worker. */
export function workerSettings(config: Config) {
  return {
    taskQueue: config.taskQueue,
    workflowBundle: config.workflowBundle,
    deployment: config.deployment,
    maxConcurrentSteps: config.maxConcurrentSteps,
    shutdownGraceMs: config.shutdownGraceMs,
    janitor: {
      roundMs: config.janitorRoundMs,
      patienceMs: config.janitorPatienceMs,
      eventRetentionDays: config.eventRetentionDays,
    },
  };
}

/** Temporal caches this many workflows; each costs some 100 KB. */
const maxCachedWorkflows = 500;
/**
 * A process that is paused keeps its polls open, and each may swallow one task until that times out;
 * so there are few of them while there is little to do.
 */
const pollers = { type: "autoscaling", minimum: 1, initial: 2, maximum: 20 } as const;
/**
 * Temporal's default. A poll holds a slot while it waits, and with two slots both may wait for tasks of
 * workflows that are cached here, of which there are none.
 */
const minWorkflowTaskSlots = 40;
/**
 * Each waiting call costs Temporal one request in this time; two fit into the heartbeat timeout. Nobody
 * waits for what comes back on them: cancels reach a worker by the record.
 */
const maxHeartbeatThrottleIntervalMs = 2_000;
/**
 * A dead worker's workflow tasks are taken over after this long; Temporal's default is 10 s. A shorter
 * time is missed by workers that are only busy, and their turns replayed for nothing.
 */
const stickyTimeoutMs = 2_000;

/** Evaluated once per worker instead of once per workflow; these keep no state of a workflow. */
export const preloadModules = ["@temporalio/common"];

function workflowSource(bundle: string | null | undefined): Partial<WorkerOptions> {
  if (bundle) return { workflowBundle: { codePath: bundle } };
  return {
    workflowsPath: fileURLToPath(
      new URL(`./workflows/index${extname(import.meta.url)}`, import.meta.url),
    ),
    bundlerOptions: { preloadModules },
  };
}

/** Running turns move to the current version, whose code can go on with their histories. */
function versioning(version: WorkerVersion | null | undefined): Partial<WorkerOptions> {
  if (!version) return {};
  return {
    workerDeploymentOptions: {
      version,
      useWorkerVersioning: true,
      defaultVersioningBehavior: "AUTO_UPGRADE",
    },
  };
}

/**
 * Workflows without the SDK's limit of 5 s on one step of their code. Node keeps it with a thread for
 * each call into the sandbox, four of them and more for a workflow task, and each costs more than what
 * it watches. The bundle has no code but ours, which waits for activities and computes nothing.
 */
class TurnkeeperWorker extends Worker {
  protected static override createWorkflowCreator(
    ...[bundle, options, logger]: Parameters<typeof Worker.createWorkflowCreator>
  ) {
    const isolateExecutionTimeoutMs = undefined as unknown as number;
    return super.createWorkflowCreator(bundle, { ...options, isolateExecutionTimeoutMs }, logger);
  }
}

function createTemporalWorker(
  options: TurnWorkerOptions,
  activities: object,
  sinks: InjectedSinks<TurnSinks>,
): Promise<Worker> {
  return TurnkeeperWorker.create({
    connection: options.connection,
    namespace: options.client.options.namespace,
    taskQueue: options.taskQueue,
    ...workflowSource(options.workflowBundle),
    ...versioning(options.deployment),
    activities,
    sinks,
    maxConcurrentActivityTaskExecutions: options.maxConcurrentSteps,
    maxCachedWorkflows,
    // Each turn that begins here brings its first workflow task along, if there is a slot for it.
    maxConcurrentWorkflowTaskExecutions: Math.max(options.maxConcurrentSteps, minWorkflowTaskSlots),
    workflowTaskPollerBehavior: pollers,
    activityTaskPollerBehavior: pollers,
    maxHeartbeatThrottleInterval: maxHeartbeatThrottleIntervalMs,
    stickyQueueScheduleToStartTimeout: stickyTimeoutMs,
    shutdownGraceTime: options.shutdownGraceMs,
  });
}

/**
 * Makes a worker that runs turns: registers the agents, binds the activities to their real parts and
 * starts the janitor.
 *
 * @throws InvalidTool when a tool's name or schema is wrong, or an agent names a tool that is missing.
 */
export async function createWorker(options: TurnWorkerOptions): Promise<TurnWorker> {
  const { database, client } = options;
  const tools = createToolRegistry(options.tools);
  for (const agent of options.agents) tools.only(agent.tools);
  await registerAgents(database, options.agents);
  const engine = createEngine({
    client,
    taskQueue: options.taskQueue,
    eagerStart: true,
    searchAttributes: await findSearchAttributes(client),
  });
  const canceller = new ResponseCanceller(database, options.endpoint, options.log);
  const parts = await openParts(options, tools, engine, canceller);
  const headStarts = new HeadStarts(parts, options.maxConcurrentSteps);
  const activities = createTurnActivities(parts, headStarts);
  const cancelRequested = { fn: createCancelRelay(parts), callDuringReplay: false };
  const worker = await createTemporalWorker(options, activities, { turns: { cancelRequested } });
  const offeredTurns = new OfferedTurns(parts, headStarts, options.taskQueue);
  // Which version gets a turn is Temporal's to say, and it has not been asked yet.
  const hasHeadStarts = !options.deployment;
  const janitor = new Janitor({ ...parts, engine }, options.janitor);
  let isStopped = false;
  let headStartsClosed: Promise<void> | null = null;
  /** From the shutdown on: their grace is the one of the activities, and no offer is taken. */
  const closeHeadStarts = () => (headStartsClosed ??= headStarts.close(options.shutdownGraceMs));
  return {
    engine,
    headStart: (turn, tell) => hasHeadStarts && headStarts.begin(turn, tell),
    async run() {
      if (!isStopped) {
        janitor.start();
        if (hasHeadStarts) offeredTurns.start();
      }
      try {
        const running = worker.run();
        // What was asked for before it ran; only a worker that runs can be let go of.
        if (isStopped) worker.shutdown();
        await running;
      } finally {
        await offeredTurns.close();
        await closeHeadStarts();
        await janitor.close();
        await canceller.close();
        await parts.runningTurns.close();
      }
    },
    shutdown() {
      isStopped = true;
      void closeHeadStarts();
      if (worker.getState() === "RUNNING") worker.shutdown();
    },
  };
}

/** The real parts that the activities close over. */
async function openParts(
  options: TurnWorkerOptions,
  tools: ToolRegistry,
  engine: Engine,
  canceller: ResponseCanceller,
): Promise<Parts> {
  const { database, endpoint, hub, log } = options;
  const announcer = new Announcer(database, hub);
  const currentRun: Parts["currentRun"] = async (turnId) =>
    (await engine.currentRun(turnId))?.runId ?? null;
  const announce: Parts["announce"] = (turnId, events) => announcer.announce(turnId, events);
  return {
    database,
    writer: new EventWriter(database, announce, {
      ...defaultEventWriterSettings,
      ...(hub && { tickMs: inProcessTickMs }),
    }),
    endpoint,
    tools,
    agents: createAgentReader(database),
    runningTurns: await RunningTurns.open(database),
    modelPauses: new ModelPauses(),
    temporalWatch: new TemporalWatch(currentRun),
    currentRun,
    startGranted: createGrants(database, engine, log),
    cancelResponse: (turnId, responseId) => canceller.cancel(turnId, responseId),
    cancelWorkflow: (turnId) => engine.cancelWorkflow(turnId),
    announce,
    log,
  };
}
