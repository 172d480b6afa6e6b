import type { BudgetLimit } from "./budget.ts";
import type { Failure, FailureClass } from "./failures.ts";
import type { TerminalStatus } from "./turn.ts";

/** How a turn has ended, as far as its workflow is told. */
export interface TurnEnd {
  status: TerminalStatus;
  /** Of a failed turn; its message stays on record. */
  failureClass?: FailureClass;
}

/** What a workflow is told of a turn that has ended on record. */
export function turnEnd(status: TerminalStatus, failure: Pick<Failure, "class"> | null): TurnEnd {
  return failure === null ? { status } : { status, failureClass: failure.class };
}

/**
 * What a step tells the workflow: all that Temporal's history keeps of it [5].
 * `tools`: names the tools that the next step numbers call, side by side; when they are done
 * the model is called again, or, with `thenEnd`, the turn ends because the client has calls to
 * answer. With `limit` no tool is run, and the model's next call is the turn's last one. `end`: the turn has ended on record. `model`: the tool call is done.
 */
export type StepVerdict =
  | { next: "tools"; tools: string[]; thenEnd: boolean; limit?: BudgetLimit }
  | ({ next: "end" } & TurnEnd)
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
