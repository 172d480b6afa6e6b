import type { ToolOutcome } from "../turn/effects.ts";
import { cutToBytes } from "./cut.ts";
import type { ToolContext } from "./defineTool.ts";
import type { RegisteredTool, ToolRegistry } from "./registry.ts";
import type { Checked, CompiledSchema } from "./schema.ts";

export interface ToolRun extends ToolContext {
  name: string;
  /** JSON text as the model wrote it. */
  arguments: string;
  /** Of the output; the rest is cut, and said so. */
  maxResultBytes: number;
}

export interface ToolResult {
  outcome: ToolOutcome;
  /** For the model: the result, or `{"error": {"type", "message"}}`. */
  output: string;
}

export type ToolErrorType =
  | "invalid_arguments"
  | "tool_error"
  | "timeout"
  | "unknown_tool"
  | "invalid_result"
  | "aborted"
  | "outcome_unknown"
  | "not_run";

const maxErrorMessageChars = 1_000;

/** The form in which the model is told that a call has no result. */
export function toolErrorOutput(type: ToolErrorType, message: string): string {
  const line = message.slice(0, maxErrorMessageChars).replaceAll(/\s+/g, " ").trim();
  return JSON.stringify({ error: { type, message: line } });
}

function failed(outcome: ToolOutcome, type: ToolErrorType, message: string): ToolResult {
  return { outcome, output: toolErrorOutput(type, message) };
}

/** What was thrown need not be an Error, nor convertible to text. */
function messageOf(thrown: unknown): string {
  try {
    return String(thrown instanceof Error ? thrown.message : thrown);
  } catch {
    return "The tool failed without a message.";
  }
}

/** A schema with code of its own (a zod refinement) may throw. */
async function check(schema: CompiledSchema, value: unknown): Promise<Checked> {
  try {
    return await schema.check(value);
  } catch (error) {
    return { ok: false, problem: messageOf(error) };
  }
}

/** Models send an empty text for a function without parameters. */
async function readArguments(tool: RegisteredTool, text: string): Promise<Checked> {
  let value: unknown;
  try {
    value = text.trim() === "" ? {} : JSON.parse(text);
  } catch (error) {
    return { ok: false, problem: `they are not valid JSON: ${messageOf(error)}` };
  }
  return check(tool.parameters, value);
}

type Handled = { result: unknown } | { thrown: unknown } | { stopped: "timeout" | "aborted" };

/** Runs the handler until it settles, its time is up or the caller aborts, whichever is first. */
async function handle(tool: RegisteredTool, args: unknown, call: ToolRun): Promise<Handled> {
  const { idempotencyKey, turnId, callId, project } = call;
  const stop = new AbortController();
  const stopped = Promise.withResolvers<Handled>();
  const abort = () => {
    stopped.resolve({ stopped: "aborted" });
    stop.abort(call.signal.reason);
  };
  call.signal.addEventListener("abort", abort, { once: true });
  const timer = setTimeout(() => {
    stopped.resolve({ stopped: "timeout" });
    stop.abort(new DOMException(`${tool.name} timed out`, "TimeoutError"));
  }, tool.timeoutMs);
  const settled = (async (): Promise<Handled> => {
    try {
      const context = { signal: stop.signal, idempotencyKey, turnId, callId, project };
      return { result: await tool.handler(args, context) };
    } catch (thrown) {
      return { thrown };
    }
  })();
  try {
    return await Promise.race([stopped.promise, settled]);
  } finally {
    clearTimeout(timer);
    call.signal.removeEventListener("abort", abort);
  }
}

/** The text of a result, or what is wrong with it. */
function toText(result: unknown): { text: string } | { problem: string } {
  if (typeof result === "string") return { text: result };
  try {
    const text = JSON.stringify(result) as string | undefined;
    return text === undefined ? { problem: `it is of type ${typeof result}` } : { text };
  } catch (error) {
    return { problem: messageOf(error) };
  }
}

async function toOutcome(
  tool: RegisteredTool,
  result: unknown,
  maxResultBytes: number,
): Promise<ToolResult> {
  const made = toText(result);
  if ("problem" in made) {
    return failed(
      "error",
      "invalid_result",
      `The tool ran, but its result is not JSON: ${made.problem}`,
    );
  }
  if (tool.result !== null) {
    const value: unknown = typeof result === "string" ? result : JSON.parse(made.text);
    const checked = await check(tool.result, value);
    if (!checked.ok) {
      const message = `The tool ran, but its result does not fit its schema: ${checked.problem}`;
      return failed("error", "invalid_result", message);
    }
  }
  return { outcome: "ok", output: cutToBytes(made.text, maxResultBytes) };
}

/**
 * Runs one call of the model. Whatever goes wrong with the tool becomes an outcome that tells the
 * model about it; nothing is thrown. When it is stopped, the handler's signal is aborted and its
 * later result is ignored; what it has done by then is unknown [8].
 */
export async function runTool(registry: ToolRegistry, call: ToolRun): Promise<ToolResult> {
  const stopMessage = "The call was stopped; whether it had an effect is unknown.";
  const tool = registry.get(call.name);
  if (tool === undefined) {
    const available = registry.names.join(", ") || "none";
    return failed("not_run", "unknown_tool", `There is no such tool. Available: ${available}.`);
  }
  const args = await readArguments(tool, call.arguments);
  if (!args.ok) {
    return failed("not_run", "invalid_arguments", `The arguments are wrong: ${args.problem}`);
  }
  if (call.signal.aborted) {
    return failed("not_run", "aborted", "The call was stopped before it began.");
  }
  const handled = await handle(tool, args.value, call);
  if ("thrown" in handled) return failed("error", "tool_error", messageOf(handled.thrown));
  if ("result" in handled) return toOutcome(tool, handled.result, call.maxResultBytes);
  if (handled.stopped === "aborted") return failed("unknown", "aborted", stopMessage);
  return failed(
    "unknown",
    "timeout",
    `The tool took longer than ${tool.timeoutMs} ms. ${stopMessage}`,
  );
}
