import { withVersion } from "./agent.ts";
import type { Agent } from "./agent.ts";
import { contentHash } from "./canonical.ts";
import { Refusal } from "./failures.ts";
import { copiedItemId } from "./ids.ts";
import type { Item } from "./items.ts";
import { defaultTurnLimits } from "./limits.ts";
import { checkModel, refuseNameConflicts } from "./prepare.ts";
import type { PreparedTurn } from "./prepare.ts";
import { keepsItsId } from "./takeOver.ts";
import type { Turn } from "./turn.ts";

/**
 * Which calls of tools run in a replay. `recorded`: those of repeatable tools without an outcome on
 * record. `new`: every call without an outcome on record. `all`: every call. A call with an outcome on
 * record is answered with it, except by `all` [8].
 */
export type ReplayEffects = "recorded" | "new" | "all";

/** Of a turn that is a replay. */
export interface TurnReplay {
  /** The turn that it replays. */
  of: string;
  /** The turn that was replayed first, if that one was a replay too. */
  originId: string;
  effects: ReplayEffects;
  /** It runs where nobody is shown it, to be compared. */
  isDryRun: boolean;
}

/** How a turn is replayed. Without options: it goes on behind its finished steps. */
export interface ReplayOptions {
  /**
   * Takes no steps over. Default false, and true with `model`, `instructions`, `tools` or
   * `contextStrategy`.
   */
  fromStart?: boolean | undefined;
  /** A provider's model instead of the turn's. */
  model?: string | undefined;
  /** Instead of the request's and the agent's. */
  instructions?: string | undefined;
  /** Names of the tools that the agent has in the replay, instead of its own. */
  tools?: string[] | undefined;
  /** There is only `full`, the whole conversation. */
  contextStrategy?: "full" | undefined;
  /** A fork at the turn's base even where the replay could go on in the conversation. */
  fork?: boolean | undefined;
  /** Runs all calls of tools, also those with an outcome on record. Not with a dry run. */
  allowEffects?: boolean | undefined;
  /** In a fork that nobody is shown, to be compared with the turn. */
  dryRun?: boolean | undefined;
}

/** Where and with what a replay begins, as far as the options decide it. */
export interface ReplayPlan {
  of: string;
  takesSteps: boolean;
  isForked: boolean;
  /** In a fork that nobody is shown. */
  isDryRun: boolean;
  allowsEffects: boolean;
  /** The agent with other tools, a version of its own; `null` where the turn's own version is used. */
  agent: Agent | null;
}

/** A replay that has been checked: ready to be put on record. */
export type PreparedReplay = PreparedTurn & { plan: ReplayPlan };

function invalid(problem: string, param: string): Refusal {
  return new Refusal("invalid_value", problem, param);
}

const contextStrategies: ReadonlySet<string> = new Set(["full"]);

function hasOverride({ model, instructions, tools, contextStrategy }: ReplayOptions): boolean {
  return [model, instructions, tools, contextStrategy].some((value) => value !== undefined);
}

function checkOptions(options: ReplayOptions): void {
  if (options.contextStrategy !== undefined && !contextStrategies.has(options.contextStrategy)) {
    throw invalid("The only context strategy is 'full'.", "context_strategy");
  }
  if (options.dryRun && options.allowEffects) {
    throw invalid("A dry run has no effects, so it cannot be allowed any.", "allow_effects");
  }
  if (hasOverride(options) && options.fromStart === false) {
    const problem =
      "A turn with a model, instructions, tools or strategy of its own is replayed from its start.";
    throw invalid(problem, "from_start");
  }
}

/** A tool that no agent has is one that no worker has: its calls would wait for ever. */
function withTools(agent: Agent, tools: string[], agents: readonly Agent[]): Agent {
  const known = new Set([agent, ...agents].flatMap((each) => each.tools));
  const unknown = tools.find((name) => !known.has(name));
  if (unknown === undefined) return withVersion({ ...agent, tools });
  const problem = `No agent has a tool called '${unknown}'. Known are: ${[...known].join(", ")}.`;
  throw invalid(problem, "tools");
}

/** New ids, so that no item is two, save where an item cannot do without its own. */
function copyInput(input: readonly Item[]): Item[] {
  return input.map((item) => (keepsItsId(item) ? item : { ...item, id: copiedItemId(item) }));
}

/**
 * Makes the turn that replays another one, with limits fixed anew.
 *
 * @param agent the version that the turn ran on.
 * @param agents all that are registered.
 * @throws Refusal `invalid_value` or `tool_name_conflict`.
 */
export function prepareReplay(
  original: Turn,
  options: ReplayOptions,
  agent: Agent,
  agents: readonly Agent[],
): PreparedReplay {
  checkOptions(options);
  const { tools, instructions, dryRun: isDryRun = false } = options;
  const model = checkModel(options.model);
  const changed = tools === undefined ? null : withTools(agent, tools, agents);
  const request = { ...original.request, input: copyInput(original.request.input) };
  if (changed !== null) refuseNameConflicts(request, changed);
  const isOther = hasOverride(options);
  const current = agents.find((each) => each.name === agent.name) ?? agent;
  return {
    agent: agent.name,
    agentVersion: (changed ?? agent).version,
    model: model ?? original.originalModel ?? original.model,
    request: { ...request, instructions: instructions ?? request.instructions },
    requestHash: contentHash({ replay: original.id, ...options }),
    limits: { ...defaultTurnLimits, ...current.limits },
    plan: {
      of: original.id,
      takesSteps: !(options.fromStart ?? isOther),
      isForked: isDryRun || (options.fork ?? false) || isOther,
      isDryRun,
      allowsEffects: options.allowEffects ?? false,
      agent: changed,
    },
  };
}
