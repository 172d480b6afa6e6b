import type { Failure } from "./failures.ts";
import type { TurnLimits } from "./limits.ts";
import type { TurnReplay } from "./replay.ts";
import type { TurnRequest } from "./request.ts";

/**
 * `queued`: waits for its conversation. `admitted`: holds it, not yet claimed by a worker.
 * `running`: claimed. The other four are terminal and never change again [1].
 */
export type TurnStatus =
  | "queued"
  | "admitted"
  | "running"
  | "completed"
  | "incomplete"
  | "failed"
  | "cancelled";

export type TerminalStatus = "completed" | "incomplete" | "failed" | "cancelled";

const terminal: ReadonlySet<TurnStatus> = new Set([
  "completed",
  "incomplete",
  "failed",
  "cancelled",
]);

export function isTerminal(status: TurnStatus): status is TerminalStatus {
  return terminal.has(status);
}

/** Tokens of a turn, all its counted model calls added up, in the words of the Responses API. */
export interface Usage {
  input_tokens: number;
  input_tokens_details: { cached_tokens: number; cache_write_tokens: number };
  output_tokens: number;
  output_tokens_details: { reasoning_tokens: number };
  total_tokens: number;
}

/** Tokens of one model call. The cached, cache-written and reasoning ones are parts of the totals. */
export interface TokenCounts {
  inputTokens: number;
  cachedTokens: number;
  cacheWriteTokens: number;
  outputTokens: number;
  reasoningTokens: number;
}

/** What answered instead of the model that was asked for. */
export type Degradation = "fallback" | "static_answer";

/** A turn as it is on record. */
export interface Turn {
  id: string;
  project: string;
  conversationId: string;
  status: TurnStatus;
  /** `YYYY-MM-DD` in UTC; names the partition of the turn's events. */
  admittedOn: string;
  agent: string;
  agentVersion: string;
  /** The provider's model that answers now. */
  model: string;
  /** The model that the turn was admitted for, where a fallback has replaced it. */
  originalModel: string | null;
  /** The turn could not be answered as its agent means to. */
  degraded: Degradation | null;
  request: TurnRequest;
  limits: TurnLimits;
  deadlineAt: Date;
  runId: string | null;
  cancelRequestedAt: Date | null;
  /** The turn is cancelled this long after everybody who followed it has gone; `null`: never. */
  disconnectGraceMs: number | null;
  /** Response output items; set when the turn ends. */
  output: unknown[] | null;
  usage: Usage | null;
  failure: Failure | null;
  incompleteReason: string | null;
  createdAt: Date;
  startedAt: Date | null;
  endedAt: Date | null;
  /** `null` where the turn is no replay. */
  replay: TurnReplay | null;
}
