import { contentHash } from "./canonical.ts";
import type { TurnLimits } from "./limits.ts";

/** A named, versioned configuration of turns. */
export interface AgentDefinition {
  name: string;
  /** The persona: the model's `instructions`. A request's own `instructions` replace it. */
  instructions: string | null;
  /** The provider's model. */
  model: string;
  /** Names of registered tools that the model may call. */
  tools: string[];
  /** Responses API parameters for every call (`temperature`, `reasoning`, ...); a request's own win. */
  parameters: Record<string, unknown>;
  limits: Partial<TurnLimits>;
}

export interface Agent extends AgentDefinition {
  /** Made from the definition's content: the same definition has the same version everywhere. */
  version: string;
}

/** The agent that turns run on when `model` names a provider's model instead of an agent. */
export const defaultAgentName = "default";

const agentName = /^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$/;

/**
 * Defines an agent: `name`, `model` and whatever it needs of instructions, tools (by name),
 * parameters and limits.
 *
 * @throws TypeError when the name has other characters than letters, digits and `_ . : -`,
 *   or more than 64, or a limit is no whole number above 0.
 */
export function defineAgent(
  definition: Pick<AgentDefinition, "name" | "model"> & Partial<AgentDefinition>,
): Agent {
  if (!agentName.test(definition.name)) {
    throw new TypeError(
      `An agent's name has 1 to 64 letters, digits or _ . : - characters; got ${JSON.stringify(definition.name)}.`,
    );
  }
  for (const [name, limit] of Object.entries(definition.limits ?? {})) {
    if (!Number.isInteger(limit) || limit < 1) {
      throw new TypeError(
        `The limit '${name}' of agent '${definition.name}' must be a whole number above 0.`,
      );
    }
  }
  const whole: AgentDefinition = {
    name: definition.name,
    model: definition.model,
    instructions: definition.instructions ?? null,
    tools: definition.tools ?? [],
    parameters: definition.parameters ?? {},
    limits: definition.limits ?? {},
  };
  const versionHexDigits = 12;
  return { ...whole, version: contentHash(whole).toString("hex").slice(0, versionHexDigits) };
}
