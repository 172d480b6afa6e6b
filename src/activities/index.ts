import { createAdmitTurn, createAwaitGrant } from "./admitTurn.ts";
import { createCallModel } from "./callModel.ts";
import { createEndTurn } from "./endTurn.ts";
import type { Parts } from "./parts.ts";
import { createRunTool } from "./runTool.ts";

/** All activities of a turn, bound to their real parts. */
export function createTurnActivities(parts: Parts) {
  return {
    admitTurn: createAdmitTurn(parts),
    awaitGrant: createAwaitGrant(parts),
    callModel: createCallModel(parts),
    runTool: createRunTool(parts),
    endTurn: createEndTurn(parts),
  };
}

export type TurnActivities = ReturnType<typeof createTurnActivities>;
