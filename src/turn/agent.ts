import { contentHash } from "./canonical.ts";
import { failureRules } from "./failures.ts";
import type { FailureClass } from "./failures.ts";
import { defaultTurnLimits, maxTimerMs } from "./limits.ts";
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
  durability: Durability;
  /** Models to turn to, in this order, when the one before fails. */
  fallbacks: Fallback[];
  /** The answer where no model gives one by the deadline; the turn completes with it, marked degraded. */
  staticAnswer: string | null;
}

/**
 * What becomes of a model call whose worker dies. `foreground`: it is made again; the first token
 * comes fastest. `background`: the provider keeps the response (`background` and `store` of the
 * Responses API), and the next worker goes on with it.
 */
export type Durability = "foreground" | "background";

export interface Fallback {
  /** The provider's model. */
  model: string;
  /** The failure classes that lead to it. Default: those that are retried, `quota_exhausted`,
   * `model_not_found` and `context_overflow`. */
  on?: FailureClass[];
  /** Failed calls of a step on the model before, of a class that is retried. Default 2. */
  afterFailures?: number;
}

export interface Agent extends AgentDefinition {
  /** Made from the definition's content: the same definition has the same version everywhere. */
  version: string;
}

/** The agent that turns run on when `model` names a provider's model instead of an agent. */
export const defaultAgentName = "default";

const agentDefaults: Omit<AgentDefinition, "name" | "model"> = {
  instructions: null,
  tools: [],
  parameters: {},
  limits: {},
  durability: "foreground",
  fallbacks: [],
  staticAnswer: null,
};

/** An agent as it was registered, perhaps by a version of Turnkeeper that knew fewer fields. */
export function parseAgent(json: string): Agent {
  return { ...agentDefaults, ...(JSON.parse(json) as Agent) };
}

const agentName = /^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$/;

/**
 * Defines an agent: `name`, `model` and whatever it needs of instructions, tools (by name),
 * parameters, limits, durability, fallbacks and a static answer.
 *
 * @throws TypeError when the name has other characters than letters, digits and `_ . : -`,
 *   or more than 64, a limit is unknown, no number above 0 (whole, save `maxTurnCostUsd`) or longer than
 *   2^31 - 1 ms, a fallback repeats a model or names an unknown class, or the durability is none.
 */
export function defineAgent(
  definition: Pick<AgentDefinition, "name" | "model"> & Partial<AgentDefinition>,
): Agent {
  if (!agentName.test(definition.name)) {
    throw new TypeError(
      `An agent's name has 1 to 64 letters, digits or _ . : - characters; got ${JSON.stringify(definition.name)}.`,
    );
  }
  checkLimits(definition);
  checkFallbacks(definition);
  return withVersion({ ...agentDefaults, ...definition });
}

/** What was defined once is not checked again: an older Turnkeeper may have allowed more. */
export function withVersion(definition: AgentDefinition): Agent {
  const versionHexDigits = 12;
  const version = contentHash(definition).toString("hex").slice(0, versionHexDigits);
  return { ...definition, version };
}

type Named = Pick<AgentDefinition, "name" | "model"> & Partial<AgentDefinition>;

function checkLimits({ name: agent, limits = {} }: Named): void {
  for (const [name, limit] of Object.entries(limits)) {
    const limitOfAgent = `The limit '${name}' of agent '${agent}'`;
    if (!Object.hasOwn(defaultTurnLimits, name)) {
      const known = Object.keys(defaultTurnLimits).join(", ");
      throw new TypeError(`${limitOfAgent} is unknown. Known are: ${known}.`);
    }
    const isUsable = name === "maxTurnCostUsd" ? limit > 0 : Number.isInteger(limit) && limit > 0;
    if (!isUsable) throw new TypeError(`${limitOfAgent} must be a whole number above 0.`);
    // A turn may last longer than any one step of it waits.
    if (name.endsWith("Ms") && name !== "maxTurnMs" && limit > maxTimerMs) {
      throw new TypeError(`${limitOfAgent} must be at most ${maxTimerMs} ms.`);
    }
  }
}

function checkFallbacks({ name: agent, model, fallbacks = [], durability }: Named): void {
  if (durability !== undefined && durability !== "foreground" && durability !== "background") {
    throw new TypeError(`The durability of agent '${agent}' must be 'foreground' or 'background'.`);
  }
  const seen = new Set([model]);
  for (const { model: next, on = [], afterFailures = 1 } of fallbacks) {
    const unknown = on.find((each) => !Object.hasOwn(failureRules, each));
    if (seen.has(next)) throw new TypeError(`Agent '${agent}' falls back to '${next}' twice.`);
    if (unknown !== undefined) {
      throw new TypeError(
        `Agent '${agent}' falls back on '${unknown}', which is no failure class.`,
      );
    }
    if (!Number.isInteger(afterFailures) || afterFailures < 1) {
      throw new TypeError(`'afterFailures' of agent '${agent}' must be a whole number above 0.`);
    }
    seen.add(next);
  }
}
