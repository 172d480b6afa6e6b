import {
  WorkflowExecutionAlreadyStartedError,
  WorkflowIdConflictPolicy,
  WorkflowIdReusePolicy,
  WorkflowNotFoundError,
} from "@temporalio/client";
import type { Client, WorkflowStartOptions } from "@temporalio/client";
import {
  defineSearchAttributeKey,
  SearchAttributeType,
  TypedSearchAttributes,
} from "@temporalio/common";
import type { SearchAttributePair } from "@temporalio/common";
import { contentHash } from "./turn/canonical.ts";
import type { Turn } from "./turn/turn.ts";
import {
  grantedSignalName,
  maxSummaryChars,
  searchAttributeNames,
  turnWorkflowType,
} from "./turn/engineNames.ts";
import type { SearchAttributeName } from "./turn/engineNames.ts";

/** What Turnkeeper asks of Temporal. All of it may throw when Temporal is out of reach. */
export interface Engine {
  /** Starts the turn's workflow; one that is there already is success, whoever started it. */
  startTurn(turn: Turn): Promise<void>;
  /** Starts a turn that waited in the queue; one that waits in Temporal is told to go on. */
  startGranted(turn: Turn): Promise<void>;
  /** The id of the current run of the turn's workflow; `null` when Temporal knows none. */
  currentRun(turnId: string): Promise<RunOnTemporal | null>;
  /** Delivers Temporal's cancel; a workflow that has ended or is unknown is success. */
  cancelWorkflow(turnId: string): Promise<void>;
}

export interface RunOnTemporal {
  runId: string;
  isRunning: boolean;
}

export interface EngineOptions {
  client: Client;
  taskQueue: string;
  /** Where this process is a worker on the same connection, its first task comes with the start. */
  eagerStart: boolean;
  /** The attributes that the namespace has registered; see {@link findSearchAttributes}. */
  searchAttributes: ReadonlySet<SearchAttributeName>;
}

/** gRPC's INVALID_ARGUMENT: the query names an attribute that the namespace does not have. */
const invalidArgument = 3;

/**
 * Which of Turnkeeper's search attributes the namespace knows; others must not be set. Asked by
 * queries, because Temporal Cloud keeps the operator service to itself.
 *
 * @throws when Temporal is out of reach.
 */
export async function findSearchAttributes(client: Client): Promise<Set<SearchAttributeName>> {
  const isKnown = async (name: SearchAttributeName): Promise<boolean> => {
    try {
      await client.workflow.count(`${name} = 'none'`);
      return true;
    } catch (error) {
      const cause = error instanceof Error ? error.cause : undefined;
      if ((cause as { code?: unknown } | undefined)?.code === invalidArgument) return false;
      throw error;
    }
  };
  const known = await Promise.all(searchAttributeNames.map(isKnown));
  return new Set(searchAttributeNames.filter((_, at) => known[at]));
}

/** A visibility store indexes no more of a keyword, and a server refuses much more of it. */
const maxKeywordChars = 255;

function attributesOf(turn: Turn, known: ReadonlySet<SearchAttributeName>): TypedSearchAttributes {
  const { user } = turn.request;
  const userHexDigits = 16;
  const values: Record<SearchAttributeName, string | null> = {
    TurnkeeperProject: turn.project,
    TurnkeeperConversation: turn.conversationId,
    TurnkeeperAgent: turn.agent,
    TurnkeeperModel: turn.model,
    TurnkeeperStatus: "running",
    // Who the user is belongs to the application; equal users have equal hashes [15].
    TurnkeeperUser:
      user && contentHash([turn.project, user]).toString("hex").slice(0, userHexDigits),
  };
  const pairs: SearchAttributePair[] = searchAttributeNames.flatMap((name) => {
    const value = values[name];
    if (value === null || value === "" || !known.has(name)) return [];
    const key = defineSearchAttributeKey(name, SearchAttributeType.KEYWORD);
    return [{ key, value: value.slice(0, maxKeywordChars) }];
  });
  return new TypedSearchAttributes(pairs);
}

/**
 * A worker that dies while it has a turn's workflow task, or a paused one that swallows it, holds the
 * turn up for so long; Temporal's default is 10 s. Tasks of turns take milliseconds.
 */
const workflowTaskTimeoutMs = 5_000;

/** The SDK would try for longer; nobody must wait that long, for the turn is on record. */
const callTimeoutMs = 5_000;

export function createEngine(options: EngineOptions): Engine {
  const { client } = options;
  const { workflow } = client;
  const within = <Result>(call: () => Promise<Result>): Promise<Result> =>
    client.withDeadline(Date.now() + callTimeoutMs, call);
  /** Returns false when there is such a workflow already. */
  async function start(turn: Turn, ifRunning: WorkflowIdConflictPolicy): Promise<boolean> {
    const startOptions: WorkflowStartOptions = {
      workflowId: turn.id,
      taskQueue: options.taskQueue,
      workflowIdReusePolicy: WorkflowIdReusePolicy.REJECT_DUPLICATE,
      workflowIdConflictPolicy: ifRunning,
      workflowTaskTimeout: workflowTaskTimeoutMs,
      typedSearchAttributes: attributesOf(turn, options.searchAttributes),
      staticSummary: `${turn.agent} on ${turn.model}`.slice(0, maxSummaryChars),
      requestEagerStart: options.eagerStart,
    };
    try {
      await within(() => workflow.start(turnWorkflowType, startOptions));
      return true;
    } catch (error) {
      if (error instanceof WorkflowExecutionAlreadyStartedError) return false;
      throw error;
    }
  }
  return {
    async startTurn(turn) {
      await start(turn, WorkflowIdConflictPolicy.USE_EXISTING);
    },
    async startGranted(turn) {
      if (await start(turn, WorkflowIdConflictPolicy.FAIL)) return;
      await within(() => workflow.getHandle(turn.id).signal(grantedSignalName));
    },
    async currentRun(turnId) {
      try {
        const { runId, status } = await within(() => workflow.getHandle(turnId).describe());
        return { runId, isRunning: status.name === "RUNNING" };
      } catch (error) {
        if (error instanceof WorkflowNotFoundError) return null;
        throw error;
      }
    },
    async cancelWorkflow(turnId) {
      try {
        await within(() => workflow.getHandle(turnId).cancel());
      } catch (error) {
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      }
    },
  };
}
