import { proxySinks } from "@temporalio/workflow";
import type { Sinks } from "@temporalio/workflow";

/** What a workflow tells the worker that runs it, beside its history. */
export interface TurnSinks extends Sinks {
  turns: {
    /** The `endTurn` that follows waits for a slot, which model calls may hold for minutes [12]. */
    cancelRequested(): void;
  };
}

export const { turns } = proxySinks<TurnSinks>();
