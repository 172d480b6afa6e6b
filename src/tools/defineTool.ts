import type { output } from "zod";
import type { $ZodType } from "zod/v4/core";

/** A JSON Schema, draft 2020-12, or draft 07 if its `$schema` says so. */
export type JsonSchema = Record<string, unknown>;

/** A zod 4 schema (also of zod/mini) or a JSON Schema. */
export type ToolSchema = $ZodType | JsonSchema;

/** What a handler gets: zod's output, defaults and transforms applied, or the checked JSON. */
export type ArgumentsOf<S extends ToolSchema> = S extends $ZodType
  ? output<S>
  : Record<string, unknown>;

/** What a handler knows about the call it serves. */
export interface ToolContext {
  /** Aborted when the turn is cancelled, the worker stops or cannot reach Temporal, or the time is up. */
  signal: AbortSignal;
  /**
   * The same for every run of the same call, in every attempt and every replay: pass it on to whatever
   * has the effect [8]. At most 180 of the characters `A-Z a-z 0-9 _ . : - /`.
   */
  idempotencyKey: string;
  turnId: string;
  callId: string;
  project: string;
}

export interface ToolDefinition<S extends ToolSchema> {
  /** 1 to 64 letters, digits, `_` or `-`: the Responses API's rule. */
  name: string;
  /** For the model: what the tool does and when to use it. */
  description: string;
  /** An object schema. */
  parameters: S;
  /** Checks the JSON that the handler's result makes; default: any JSON. */
  result?: ToolSchema;
  /** Default 60,000. Only a handler that gives up the thread can be stopped. */
  timeoutMs?: number;
  /** Whether a second run with the same arguments does no harm [8]; default false. */
  repeatable?: boolean;
  /** A string is handed to the model as it is, every other result as JSON. */
  handler(args: ArgumentsOf<S>, context: ToolContext): unknown;
}

/** A tool that runs in the worker; it is checked when a registry is made of it. */
export interface Tool {
  name: string;
  description: string;
  parameters: ToolSchema;
  result: ToolSchema | null;
  timeoutMs: number;
  repeatable: boolean;
  handler(args: unknown, context: ToolContext): unknown;
}

const defaultTimeoutMs = 60_000;

/** Defines a tool; the types of the handler's arguments follow from a zod schema. */
export function defineTool<S extends ToolSchema>(definition: ToolDefinition<S>): Tool {
  const { name, description, parameters } = definition;
  return {
    name,
    description,
    parameters,
    result: definition.result ?? null,
    timeoutMs: definition.timeoutMs ?? defaultTimeoutMs,
    repeatable: definition.repeatable ?? false,
    handler: (args, context) => definition.handler(args as ArgumentsOf<S>, context),
  };
}
