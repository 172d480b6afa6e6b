import { pathToFileURL } from "node:url";
import { resolve } from "node:path";
import type { Config } from "./config.ts";
import { InvalidConfig } from "./config.ts";
import type { Tool } from "./tools/defineTool.ts";
import { defaultAgentName, defineAgent } from "./turn/agent.ts";
import type { Agent } from "./turn/agent.ts";

/** What an application brings: its agents and the tools that they name. */
export interface App {
  agents: Agent[];
  tools: Tool[];
}

/**
 * Loads the module that `TURNKEEPER_APP` names, which exports `agents` and `tools`; a default agent
 * on the configured model is added where it brings none.
 *
 * @throws InvalidConfig when the module cannot be loaded or exports something else.
 */
export async function loadApp(config: Config): Promise<App> {
  const loaded = config.app === null ? { agents: [], tools: [] } : await importApp(config.app);
  const hasDefault = loaded.agents.some((agent) => agent.name === defaultAgentName);
  if (hasDefault) return loaded;
  const { model, durability } = config;
  const ownDefault = defineAgent({ name: defaultAgentName, model, durability });
  return { agents: [...loaded.agents, ownDefault], tools: loaded.tools };
}

async function importApp(path: string): Promise<App> {
  const url = pathToFileURL(resolve(path)).href;
  const exported = await import(url).catch((error: unknown) => {
    throw new InvalidConfig([`TURNKEEPER_APP: ${path} cannot be loaded: ${String(error)}`]);
  });
  const { agents = [], tools = [] } = exported as Partial<App>;
  if (Array.isArray(agents) && Array.isArray(tools)) return { agents, tools };
  throw new InvalidConfig([`TURNKEEPER_APP: ${path} must export 'agents' and 'tools' as lists.`]);
}
