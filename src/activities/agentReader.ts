import { LRUCache } from "lru-cache";
import { readAgentVersion } from "../store/agents.ts";
import type { Queryable } from "../store/database.ts";
import type { Agent } from "../turn/agent.ts";

/** Reads one version of an agent; `null` where it is not registered. */
export type AgentReader = (name: string, version: string) => Promise<Agent | null>;

/** Versions never change, so what was read once is kept. */
export function createAgentReader(queryable: Queryable): AgentReader {
  const maxAgents = 1_000;
  const known = new LRUCache<string, Agent>({ max: maxAgents });
  return async (name, version) => {
    const key = `${name}@${version}`;
    const kept = known.get(key);
    if (kept !== undefined) return kept;
    const agent = await readAgentVersion(queryable, name, version);
    if (agent !== null) known.set(key, agent);
    return agent;
  };
}
