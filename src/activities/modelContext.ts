import { assembleContext } from "../context/assemble.ts";
import type { ModelCall } from "../responses/call.ts";
import { readHistory } from "../store/conversations.ts";
import type { Database } from "../store/database.ts";
import { readFinishedSteps } from "../store/steps.ts";
import type { ToolRegistry } from "../tools/registry.ts";
import type { Agent } from "../turn/agent.ts";
import type { Turn } from "../turn/turn.ts";

/** Reads the conversation and makes the model call of a turn's next step. */
export async function readModelCall(
  database: Database,
  tools: ToolRegistry,
  turn: Turn,
  agent: Agent,
  step: number,
): Promise<ModelCall> {
  const [history, steps] = await Promise.all([
    readHistory(database, turn.project, turn.conversationId),
    step === 1 ? [] : readFinishedSteps(database, turn.id),
  ]);
  return {
    model: turn.model,
    instructions: turn.request.instructions ?? agent.instructions,
    input: assembleContext({
      history,
      input: turn.request.input,
      steps: steps.flatMap((each) => each.items),
    }),
    tools: [...agent.tools.map((name) => tools.definitionOf(name)), ...turn.request.tools],
    parameters: { ...agent.parameters, ...turn.request.parameters },
  };
}
