import { assembleContext } from "../context/assemble.ts";
import type { ModelCall } from "../responses/call.ts";
import { readHistory } from "../store/conversations.ts";
import type { Database } from "../store/database.ts";
import { readFinishedSteps } from "../store/steps.ts";
import type { ToolRegistry } from "../tools/registry.ts";
import type { Agent } from "../turn/agent.ts";
import type { Item } from "../turn/items.ts";
import type { Turn } from "../turn/turn.ts";

/** A model call with what the turn's earlier steps have to do with it. */
export interface NextModelCall {
  call: ModelCall;
  /** Ids and call ids that are taken in the conversation. */
  usedIds: string[];
  /** Bytes of JSON that the model has written in this turn so far. */
  writtenBytes: number;
}

/** Reads the conversation and makes the model call of a turn's next step. */
export async function readModelCall(
  database: Database,
  tools: ToolRegistry,
  turn: Turn,
  agent: Agent,
  step: number,
): Promise<NextModelCall> {
  const { conversation, previousTurnId } = turn.request;
  // A conversation that was made for this turn has nothing in it, and nobody writes to it meanwhile.
  const isNew = conversation === null && previousTurnId === null;
  const [history, steps] = await Promise.all([
    isNew ? [] : readHistory(database, turn.project, turn.conversationId),
    step === 1 ? [] : readFinishedSteps(database, turn.id),
  ]);
  const { input } = turn.request;
  const made = steps.flatMap((each) => each.items);
  const written = steps.flatMap((each) => (each.kind === "model" ? each.items : []));
  return {
    call: {
      model: turn.model,
      instructions: turn.request.instructions ?? agent.instructions,
      input: assembleContext({ history, input, steps: made }),
      tools: [...agent.tools.map((name) => tools.definitionOf(name)), ...turn.request.tools],
      parameters: { ...agent.parameters, ...turn.request.parameters },
    },
    usedIds: [...history, ...input, ...made].flatMap(idsOf),
    writtenBytes: written.reduce((sum, item) => sum + Buffer.byteLength(JSON.stringify(item)), 0),
  };
}

function idsOf(item: Item): string[] {
  const callId = item["call_id"];
  return typeof callId === "string" ? [item.id, callId] : [item.id];
}
