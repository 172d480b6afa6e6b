import { canonicalJson, contentHash } from "./canonical.ts";
import type { ToolCall } from "./verdict.ts";

/**
 * What is known of a tool call's effect. `ok`: it has a result. `error`: it ran and failed.
 * `unknown`: it began, and nobody knows what it has done [8]. `not_run`: it never began.
 */
export type ToolOutcome = "ok" | "error" | "unknown" | "not_run";

const hashHexDigits = 32;

/** The model may write anything for arguments; what is no JSON is compared as text. */
function canonicalArguments(text: string): string {
  try {
    return text.trim() === "" ? "{}" : canonicalJson(JSON.parse(text));
  } catch {
    return text;
  }
}

/**
 * The effect that a call asks for: `TURN_ID/HASH` of the turn that was replayed first, and of the tool
 * with its canonical arguments. With the call's number among the turn's equal calls behind it, it is
 * the call's idempotency key, the same in every attempt and every replay [8].
 */
export function effectOf(originTurnId: string, call: Pick<ToolCall, "name" | "arguments">): string {
  const hash = contentHash([call.name, canonicalArguments(call.arguments)]).toString("hex");
  return `${originTurnId}/${hash.slice(0, hashHexDigits)}`;
}
