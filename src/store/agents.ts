import { parseAgent } from "../turn/agent.ts";
import type { Agent } from "../turn/agent.ts";
import type { Queryable } from "./database.ts";

/** Registers agents; the newest registration of a name is the one that new turns run on. */
export async function registerAgents(
  queryable: Queryable,
  agents: readonly Agent[],
): Promise<void> {
  for (const agent of agents) {
    await queryable.query(
      `INSERT INTO agents (name, version, definition) VALUES ($1, $2, $3)
       ON CONFLICT (name, version) DO UPDATE SET registered_at = clock_timestamp()`,
      [agent.name, agent.version, JSON.stringify(agent)],
    );
  }
}

/** Adds a version of an agent that turns are not to run on unless they name it. */
export async function addAgentVersion(queryable: Queryable, agent: Agent): Promise<void> {
  await queryable.query(
    `INSERT INTO agents (name, version, definition, registered_at) VALUES ($1, $2, $3, '-infinity')
     ON CONFLICT (name, version) DO NOTHING`,
    [agent.name, agent.version, JSON.stringify(agent)],
  );
}

/** The current version of every registered agent. */
export async function listAgents(queryable: Queryable): Promise<Agent[]> {
  const rows = await queryable.query<{ definition: string }>(
    `SELECT DISTINCT ON (name) definition FROM agents ORDER BY name, registered_at DESC`,
    [],
  );
  return rows.map((row) => parseAgent(row.definition));
}

export interface AgentRegistration {
  name: string;
  registeredAt: Date;
}

/** The names of all registered agents, and since when their current version is registered. */
export async function listRegistrations(queryable: Queryable): Promise<AgentRegistration[]> {
  const rows = await queryable.query<{ name: string; registered_at: Date }>(
    "SELECT name, max(registered_at) AS registered_at FROM agents GROUP BY name ORDER BY name",
    [],
  );
  return rows.map((row) => ({ name: row.name, registeredAt: row.registered_at }));
}

/** One version of an agent; versions never change, so the answer may be kept. */
export async function readAgentVersion(
  queryable: Queryable,
  name: string,
  version: string,
): Promise<Agent | null> {
  const [row] = await queryable.query<{ definition: string }>(
    "SELECT definition FROM agents WHERE name = $1 AND version = $2",
    [name, version],
  );
  return row === undefined ? null : parseAgent(row.definition);
}
