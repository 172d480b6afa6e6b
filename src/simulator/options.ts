import type { ScriptStep } from "./script.ts";

export interface SimulatorOptions {
  /** On 127.0.0.1; default 0: a free one. */
  port?: number;
  /** `scripted` (default): a call without a step is an error. `friendly`: it gets a useful answer. */
  mode?: "scripted" | "friendly";
  /** Answers calls for which the script has no step, in either mode. */
  defaultAnswer?: ScriptStep;
  /** The only key accepted; default: any, but one must be given. */
  apiKey?: string;
  /** Between the words of friendly answers; default 15 ms. */
  deltaDelayMs?: number;
  /** How long a background response's stream can be resumed; default 5 minutes, as OpenAI's. */
  resumableForMs?: number;
  /** Default 64 MiB; more is answered with 413. */
  maxBodyBytes?: number;
  /** Bill entries, requests, stored responses and occurrences kept; default 10,000 of each. */
  maxKept?: number;
  /** What GET /v1/models lists. Requests may name any model. */
  models?: readonly string[];
}

export type ResolvedOptions = Required<
  Omit<SimulatorOptions, "port" | "defaultAnswer" | "apiKey">
> &
  Pick<SimulatorOptions, "defaultAnswer" | "apiKey">;

export function withDefaults(options: SimulatorOptions): ResolvedOptions {
  return {
    mode: "scripted",
    deltaDelayMs: 15,
    resumableForMs: 300_000,
    maxBodyBytes: 64 * 1024 * 1024,
    maxKept: 10_000,
    models: ["gpt-6.2-sol", "gpt-6.1-terra", "gpt-6-luna"],
    ...options,
  };
}
