import type { TerminalStatus } from "./turn.ts";

/**
 * What a step tells the workflow: all that Temporal's history keeps of it [5].
 * `tools`: the next `count` step numbers are tool calls that run side by side; when they are done
 * the model is called again, or, with `thenEnd`, the turn ends because the client has calls to
 * answer. `end`: the turn has ended on record. `next`: the tool call is done.
 */
export type StepVerdict =
  | { next: "tools"; tools: string[]; thenEnd: boolean }
  | { next: "end"; status: TerminalStatus }
  | { next: "model" };

/** A call of a server tool, as the model step that asked for it leaves it for the tool's step. */
export interface ToolCall {
  callId: string;
  name: string;
  /** JSON text as the model wrote it. */
  arguments: string;
  /** The place and id of the `mcp_call` item that shows the call in the response. */
  outputIndex: number;
  itemId: string;
}
