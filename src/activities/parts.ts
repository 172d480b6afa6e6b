import type { Logger } from "pino";
import type { EventWriter } from "../events/writer.ts";
import type { ModelEndpoint } from "../responses/call.ts";
import type { Database } from "../store/database.ts";
import type { CurrentRun } from "../store/claims.ts";
import type { ToolRegistry } from "../tools/registry.ts";
import type { RecordedEvent } from "../turn/events.ts";
import type { AgentReader } from "./agentReader.ts";
import type { ModelPauses } from "./modelPauses.ts";
import type { RunningTurns } from "./runningTurns.ts";
import type { TemporalWatch } from "./temporalWatch.ts";

/** The real parts that activities close over; the worker makes them. */
export interface Parts {
  database: Database;
  writer: EventWriter;
  endpoint: ModelEndpoint;
  tools: ToolRegistry;
  agents: AgentReader;
  runningTurns: RunningTurns;
  modelPauses: ModelPauses;
  temporalWatch: TemporalWatch;
  currentRun: CurrentRun;
  /** Starts the workflow of a turn that was granted its conversation; the janitor makes up for failures. */
  startGranted: (turnId: string) => void;
  /** Stops a response that the provider keeps and nobody will go on with, so that it costs no more. */
  cancelResponse: (turnId: string, responseId: string) => void;
  /** Delivers Temporal's cancel to the workflow of a turn whose cancel is on record. */
  cancelWorkflow: (turnId: string) => Promise<void>;
  /** Gives committed events to this process's subscribers and tells the others to read them. */
  announce: (turnId: string, events: readonly RecordedEvent[]) => void;
  log: Logger;
}
