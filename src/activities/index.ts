import { ApplicationFailure, Context } from "@temporalio/activity";
import { StoreUnavailable } from "../store/database.ts";
import { createAdmitTurn, createAwaitGrant } from "./admitTurn.ts";
import { createCallModel } from "./callModel.ts";
import { createEndTurn } from "./endTurn.ts";
import type { HeadStarts } from "./headStarts.ts";
import type { Parts } from "./parts.ts";
import { createRunTool } from "./runTool.ts";
import { keepHeartbeating, retryLater } from "./stepContext.ts";

/** All activities of a turn, bound to their real parts. */
export function createTurnActivities(parts: Parts, headStarts: HeadStarts) {
  return {
    admitTurn: asAttempt(parts, createAdmitTurn(parts)),
    awaitGrant: asAttempt(parts, createAwaitGrant(parts)),
    callModel: asAttempt(parts, createCallModel(parts, headStarts)),
    runTool: asAttempt(parts, createRunTool(parts)),
    endTurn: asAttempt(parts, createEndTurn(parts)),
  };
}

/**
 * Tells Temporal that the attempt lives. What an activity did not expect goes to the log of the worker;
 * history gets its class alone, for messages and stacks would carry bodies and secrets there [5] [15].
 */
function asAttempt<Input extends unknown[], Result>(
  parts: Parts,
  activity: (...input: Input) => Promise<Result>,
): (...input: Input) => Promise<Result> {
  return async (...input) => {
    const stopHeartbeats = keepHeartbeating();
    try {
      return await activity(...input);
    } catch (error) {
      if (error instanceof ApplicationFailure) throw error;
      const isStore = error instanceof StoreUnavailable;
      const turn = Context.current().info.workflowExecution?.workflowId;
      parts.log[isStore ? "warn" : "error"]({ turn, err: error }, "an activity failed");
      throw retryLater(isStore ? error.code : "internal");
    } finally {
      stopHeartbeats();
    }
  };
}

export type TurnActivities = ReturnType<typeof createTurnActivities>;
