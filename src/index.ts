/** What applications import. */
export { Turnkeeper } from "./client.ts";
export { TurnHandle } from "./turnHandle.ts";
export { Turns } from "./turns.ts";
export type { ConnectOptions } from "./client.ts";
export type { TurnResult } from "./turnHandle.ts";
export type { StartOptions, StartTurn } from "./turns.ts";
export { defineTool } from "./tools/defineTool.ts";
export type { Tool, ToolContext, ToolDefinition } from "./tools/defineTool.ts";
export { InvalidTool } from "./tools/registry.ts";
export { defineAgent } from "./turn/agent.ts";
export type { ComparedTurn, TurnComparison } from "./store/comparisons.ts";
export type { ReplayOptions, TurnReplay } from "./turn/replay.ts";
export type { Agent, AgentDefinition } from "./turn/agent.ts";
export { failureRules, Refusal } from "./turn/failures.ts";
export type { Failure, FailureClass, RefusalCode } from "./turn/failures.ts";
export { defaultTurnLimits } from "./turn/limits.ts";
export type { TurnLimits } from "./turn/limits.ts";
export type { Turn, TurnStatus, Usage } from "./turn/turn.ts";
