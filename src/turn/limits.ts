/**
 * The limits of one turn [13], fixed when it is admitted. An agent may lower or raise them.
 */
export interface TurnLimits {
  /** Model calls and tool calls together, retries not counted. */
  maxSteps: number;
  /** Failed calls of a model step, the first included; attempts of a repeatable tool. */
  maxAttemptsPerStep: number;
  /** From admission to the end, waiting in a queue included. */
  maxTurnMs: number;
  /** Of `maxTurnMs`, kept for the model's last word; of a shorter turn not more than a quarter. */
  lastWordMs: number;
  /** Silence of the model's stream before the call is given up. */
  idleTimeoutMs: number;
  /** Bytes of JSON of everything the model may write in one turn. */
  maxOutputBytes: number;
  /** Bytes of one tool's result that are handed to the model; the rest is cut, and said so. */
  maxToolResultBytes: number;
  /** Tokens of the turn's model calls, wasted ones included; looked at before each call. */
  maxTurnTokens: number;
  /** US dollars, as far as the prices are known; looked at before each call. */
  maxTurnCostUsd: number;
  /** The same tool with the same arguments and the same result so many times is no progress. */
  maxRepeatedCalls: number;
  /** Function calls that one answer of the model may ask for. */
  maxCallsPerStep: number;
}

export const defaultTurnLimits: TurnLimits = {
  maxSteps: 64,
  maxAttemptsPerStep: 6,
  maxTurnMs: 30 * 60_000,
  lastWordMs: 30_000,
  idleTimeoutMs: 120_000,
  maxOutputBytes: 4 * 1024 * 1024,
  maxToolResultBytes: 256 * 1024,
  maxTurnTokens: 5_000_000,
  maxTurnCostUsd: 10,
  maxRepeatedCalls: 10,
  maxCallsPerStep: 32,
};

/** The longest delay of a Node timer; a longer one would fire at once. */
export const maxTimerMs = 2 ** 31 - 1;

/** Turns that may wait for one conversation, the running one not counted. */
export const maxQueuedTurns = 100;

/**
 * How long a turn outlives those who follow it, where its starter wants it to end with them. Gateways
 * tell each other through the database, which takes a second.
 */
export const disconnectGraceMs = { min: 2_000, default: 10_000, max: 600_000 };

/** Depth of nesting that a JSON body may have; the Responses API's own types need fewer than 20. */
export const maxJsonDepth = 64;
