// What every call would have cost: the counterpart of a ledger in tests.
import { createHash } from "node:crypto";
import type { ResponseInputItem, ResponseUsage } from "openai/resources/responses/responses";
import type { RequestBody } from "./response.ts";

export interface BilledCall {
  /** Null when the request was rejected before a response existed. */
  responseId: string | null;
  requestId: string;
  model: string;
  status:
    | "in_progress"
    | "completed"
    | "incomplete"
    | "failed"
    | "cancelled"
    | "aborted"
    | "rejected";
  /** Its client went away while it was generating. */
  aborted: boolean;
  background: boolean;
  inputTokens: number;
  cachedTokens: number;
  /** Written to the prompt cache; 0 unless a script says otherwise. */
  cacheWriteTokens: number;
  /** What was produced, reasoning included. */
  outputTokens: number;
  reasoningTokens: number;
  /** The terminal event, or the whole JSON body, was written to an open connection. */
  finalEventSent: boolean;
  metadata: Record<string, string>;
}

/** The bill's measure: four characters are a token. Not a tokenizer; the same everywhere. */
export function countTokens(text: string): number {
  return Math.ceil(text.length / 4);
}

export function usageOf(call: BilledCall): ResponseUsage {
  return {
    input_tokens: call.inputTokens,
    input_tokens_details: {
      cached_tokens: call.cachedTokens,
      cache_write_tokens: call.cacheWriteTokens,
    },
    output_tokens: call.outputTokens,
    output_tokens_details: { reasoning_tokens: call.reasoningTokens },
    total_tokens: call.inputTokens + call.outputTokens,
  };
}

/** Makes the response and the bill agree on figures that a script has set. */
export function applyUsage(call: BilledCall, usage: ScriptedUsage): void {
  call.inputTokens = usage.inputTokens ?? call.inputTokens;
  call.cachedTokens = usage.cachedTokens ?? call.cachedTokens;
  call.cacheWriteTokens = usage.cacheWriteTokens ?? call.cacheWriteTokens;
  call.outputTokens = usage.outputTokens ?? call.outputTokens;
  call.reasoningTokens = usage.reasoningTokens ?? call.reasoningTokens;
}

/** Figures in tokens; what is left out is computed. */
export interface ScriptedUsage {
  inputTokens?: number;
  cachedTokens?: number;
  cacheWriteTokens?: number;
  outputTokens?: number;
  reasoningTokens?: number;
}

/**
 * The prompt cache: a call's input is cached as far as an earlier call's whole input is its prefix.
 * The prefix starts with the model, the tools and the instructions. Ids and statuses do not count.
 */
export class PromptCache {
  readonly #prefixes = new Set<string>();
  readonly #maxInputs: number;

  /** Remembers the newest `maxInputs` inputs. */
  constructor(maxInputs: number) {
    this.#maxInputs = maxInputs;
  }

  measure(
    body: RequestBody,
    items: readonly ResponseInputItem[],
  ): { inputTokens: number; cachedTokens: number } {
    const head = [body.tools ?? [], body.instructions ?? ""];
    let characters = countCharacters(head);
    let hash = digest(`${body.model}${JSON.stringify(head)}`);
    let cachedTokens = 0;
    for (const item of items) {
      const text = JSON.stringify(item, (key, value) =>
        key === "id" || key === "status" ? undefined : value,
      );
      characters += countCharacters(item);
      hash = digest(hash + text);
      if (this.#prefixes.has(hash)) cachedTokens = Math.ceil(characters / 4);
    }
    this.#prefixes.delete(hash);
    this.#prefixes.add(hash);
    const [oldest] = this.#prefixes;
    if (this.#prefixes.size > this.#maxInputs && oldest) this.#prefixes.delete(oldest);
    return { inputTokens: Math.ceil(characters / 4), cachedTokens };
  }
}

const NOT_READ = new Set(["id", "type", "status"]);

/** Of the strings that the model reads, keys of objects not included. */
function countCharacters(value: unknown): number {
  if (typeof value === "string") return value.length;
  if (typeof value !== "object" || value === null) return 1;
  let characters = 0;
  for (const [key, inner] of Object.entries(value)) {
    if (!NOT_READ.has(key)) characters += countCharacters(inner);
  }
  return characters;
}

function digest(text: string): string {
  return createHash("sha1").update(text).digest("base64");
}
