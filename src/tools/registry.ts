import { maxTimerMs } from "../turn/limits.ts";
import type { JsonSchema, Tool, ToolSchema } from "./defineTool.ts";
import { compileSchema } from "./schema.ts";
import type { CompiledSchema } from "./schema.ts";

/** Thrown for a tool that cannot be used; the worker does not start with it. */
export class InvalidTool extends Error {
  constructor(tool: string, reason: string, options?: ErrorOptions) {
    super(`Tool ${JSON.stringify(tool)}: ${reason}`, options);
    this.name = "InvalidTool";
  }
}

/** The Responses API's `function` tool. `strict` is off because it forbids optional arguments. */
export interface FunctionToolDefinition {
  type: "function";
  name: string;
  description: string;
  parameters: JsonSchema;
  strict: false;
}

export interface RegisteredTool extends Omit<Tool, "parameters" | "result"> {
  parameters: CompiledSchema;
  result: CompiledSchema | null;
}

export interface ToolRegistry {
  readonly names: readonly string[];
  get(name: string): RegisteredTool | undefined;
  /** @throws InvalidTool when there is no tool of that name. */
  definitionOf(name: string): FunctionToolDefinition;
  /**
   * The tools of one agent; calls of any other are answered as unknown.
   *
   * @throws InvalidTool for the first name that is not registered.
   */
  only(names: readonly string[]): ToolRegistry;
}

/** The Responses API's rule for names of functions. */
const toolName = /^[a-zA-Z0-9_-]{1,64}$/;

function compile(tool: string, field: string, schema: ToolSchema): CompiledSchema {
  try {
    return compileSchema(schema);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new InvalidTool(tool, `its ${field} schema is invalid: ${reason}.`, { cause });
  }
}

function register(tool: Tool): RegisteredTool {
  const { name, timeoutMs } = tool;
  if (!toolName.test(name)) {
    throw new InvalidTool(name, "a name has 1 to 64 letters, digits, _ or - characters.");
  }
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > maxTimerMs) {
    const range = `a whole number of milliseconds from 1 to ${maxTimerMs}`;
    throw new InvalidTool(name, `timeoutMs must be ${range}; got ${timeoutMs}.`);
  }
  const parameters = compile(name, "parameters", tool.parameters);
  // The Responses API refuses every other root.
  if (parameters.json["type"] !== "object") {
    throw new InvalidTool(name, 'its parameters schema must have "type": "object".');
  }
  const result = tool.result === null ? null : compile(name, "result", tool.result);
  return { ...tool, parameters, result };
}

function registryOf(tools: ReadonlyMap<string, RegisteredTool>): ToolRegistry {
  const names = [...tools.keys()];
  const find = (name: string): RegisteredTool => {
    const tool = tools.get(name);
    if (tool !== undefined) return tool;
    throw new InvalidTool(name, `it is not registered; registered are: ${names.join(", ")}.`);
  };
  return {
    names,
    get: (name) => tools.get(name),
    definitionOf(name) {
      const { description, parameters } = find(name);
      return { type: "function", name, description, parameters: parameters.json, strict: false };
    },
    only: (wanted) => registryOf(new Map(wanted.map((name) => [name, find(name)]))),
  };
}

/**
 * Checks the tools and compiles their schemas, once for the life of a worker.
 *
 * @throws InvalidTool for a wrong or repeated name, a wrong schema or a wrong timeout.
 */
export function createToolRegistry(tools: readonly Tool[]): ToolRegistry {
  const registered = new Map<string, RegisteredTool>();
  for (const tool of tools) {
    if (registered.has(tool.name)) throw new InvalidTool(tool.name, "the name is used twice.");
    registered.set(tool.name, register(tool));
  }
  return registryOf(registered);
}
