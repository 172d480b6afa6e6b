import { defaultAgentName } from "./agent.ts";
import type { Agent } from "./agent.ts";
import { contentHash } from "./canonical.ts";
import { Refusal } from "./failures.ts";
import { defaultTurnLimits } from "./limits.ts";
import type { TurnLimits } from "./limits.ts";
import { checkRequest } from "./request.ts";
import type { ResponseRequest, TurnRequest } from "./request.ts";

/** A request that has been checked and has found its agent: ready to be put on record. */
export interface PreparedTurn {
  agent: string;
  agentVersion: string;
  /** The provider's model. */
  model: string;
  request: TurnRequest;
  requestHash: Buffer;
  limits: TurnLimits;
}

/** Stands in columns, search attributes and logs; providers' own names have fewer characters. */
const modelPattern = /^[\x21-\x7e]{1,256}$/;

/** The agent of that name, on its own model or on another one of the provider's. */
function findNamed(agents: readonly Agent[], name: string, model: string | null): [Agent, string] {
  const named = agents.find((agent) => agent.name === name);
  if (named !== undefined) return [named, model === null || model === name ? named.model : model];
  const advice = "A provider's model is named by 'model'.";
  throw new Refusal("unknown_agent", `No agent '${name}' is registered. ${advice}`, "agent");
}

/** `model` names an agent, or a provider's model that the default agent is to use. */
function findAgent(agents: readonly Agent[], name: string | null): [Agent, string] {
  const named = agents.find((agent) => agent.name === (name ?? defaultAgentName));
  if (named !== undefined) return [named, named.model];
  const defaultAgent = agents.find((agent) => agent.name === defaultAgentName);
  if (defaultAgent !== undefined && name) return [defaultAgent, name];
  throw new Refusal(
    "unknown_agent",
    `No agent '${name ?? defaultAgentName}' is registered, and no default agent that could use it as a model. Start a worker that defines it.`,
    "model",
  );
}

export function checkModel(value: unknown): string | null {
  if (value === undefined || value === null) return null;
  if (typeof value === "string" && modelPattern.test(value)) return value;
  const problem = "'model' must be a string of 1 to 256 printable ASCII characters without spaces.";
  throw new Refusal("invalid_value", problem, "model");
}

export function refuseNameConflicts(request: TurnRequest, agent: Agent): void {
  const names = request.tools.map((tool) => (tool as { name?: unknown }).name);
  const conflict = names.find((name) => agent.tools.includes(name as string));
  if (conflict === undefined) return;
  throw new Refusal(
    "tool_name_conflict",
    `The agent '${agent.name}' has a tool of its own called '${conflict as string}'; rename yours.`,
    "tools",
  );
}

/** Equal for requests that ask for the same turn, however they want it delivered [4]. */
export function requestHash(body: ResponseRequest): Buffer {
  return contentHash({ ...body, stream: undefined, stream_options: undefined });
}

/** An agent alone is the same request as its name in `model`. */
function withAgent(body: ResponseRequest, name: string): ResponseRequest {
  const { model } = body;
  return (model ?? name) === name ? { ...body, model: name } : { ...body, agent: name };
}

/**
 * Checks a request and finds its agent among the registered ones.
 *
 * @param agentName the agent, where it is named apart from the request's `model`.
 * @throws Refusal naming the field that is wrong, `unknown_agent` or `tool_name_conflict`.
 */
export function prepareTurn(
  body: ResponseRequest,
  agents: readonly Agent[],
  agentName?: string | null,
): PreparedTurn {
  const request = checkRequest(body);
  const named = agentName ?? null;
  const asked = checkModel(body.model);
  const [agent, model] =
    named === null ? findAgent(agents, asked) : findNamed(agents, named, asked);
  refuseNameConflicts(request, agent);
  return {
    agent: agent.name,
    agentVersion: agent.version,
    model,
    request,
    requestHash: requestHash(named === null ? body : withAgent(body, named)),
    limits: { ...defaultTurnLimits, ...agent.limits },
  };
}
