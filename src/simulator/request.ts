// What the Responses API refuses, and with which error.
import type { ResponseInputItem } from "openai/resources/responses/responses";
import { encryptedFor } from "./emit.ts";
import { apiError } from "./fault.ts";
import type { ApiErrorBody } from "./fault.ts";
import { inputItems } from "./response.ts";
import type { RequestBody } from "./response.ts";

export interface Refusal {
  status: number;
  body: ApiErrorBody;
}

/** What the server remembers, as far as a request can refer to it. */
export interface Memory {
  /** All items of a stored response and of those before it; undefined if it is not stored. */
  contextOf(responseId: string): readonly ResponseInputItem[] | undefined;
  conversation(id: string): readonly ResponseInputItem[];
  item(id: string): ResponseInputItem | undefined;
}

/** Top-level parameters of POST /responses: ResponseCreateParams of openai 7.57.0. */
const PARAMETERS = new Set(
  `access_programs background context_management conversation image include input instructions
  max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls
  previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention
  reasoning safety_identifier service_tier store stream stream_options temperature text tool_choice
  tools top_logprobs top_p truncation user`.split(/\s+/),
);

/** Input item types, of the same version. */
const ITEM_TYPES = new Set(
  `message file_search_call computer_call computer_call_output web_search_call function_call
  function_call_output tool_search_call tool_search_output additional_tools configuration_update
  reasoning compaction compaction_trigger image_generation_call code_interpreter_call
  local_shell_call local_shell_call_output shell_call shell_call_output apply_patch_call
  apply_patch_call_output mcp_list_tools mcp_approval_request mcp_approval_response mcp_call
  custom_tool_call custom_tool_call_output item_reference program program_output`.split(/\s+/),
);
const ROLES = new Set(["user", "assistant", "system", "developer"]);

/** Calls that must have their output in the input, and the type of that output. */
const OUTPUT_OF: Record<string, string> = {
  function_call: "function_call_output",
  custom_tool_call: "custom_tool_call_output",
  computer_call: "computer_call_output",
  local_shell_call: "local_shell_call_output",
  shell_call: "shell_call_output",
  apply_patch_call: "apply_patch_call_output",
};
const OUTPUTS = new Set(Object.values(OUTPUT_OF));

/** Metadata: at most 16 pairs, keys of 64 and values of 512 characters (API reference). */
const MAX_METADATA_PAIRS = 16;
const MAX_METADATA_KEY_CHARS = 64;
const MAX_METADATA_VALUE_CHARS = 512;
const MIN_MAX_OUTPUT_TOKENS = 16;

function refuse(
  message: string,
  param: string | null,
  code: string | null = null,
  status = 400,
): Refusal {
  return { status, body: apiError(message, "invalid_request_error", code, param) };
}

/** All items that the model will see, or the error that the request gets instead. */
export function readRequest(
  body: RequestBody,
  memory: Memory,
): { items: ResponseInputItem[] } | Refusal {
  const refusal = checkParameters(body) ?? checkMetadata(body) ?? checkItems(body);
  if (refusal) return refusal;
  const base = readBase(body, memory);
  if ("body" in base) return base;
  const items = [...base.items];
  for (const item of inputItems(body)) {
    if (item.type !== "item_reference") items.push(item);
    else {
      const referred = memory.item(item.id);
      if (!referred) return itemNotFound(item.id);
      items.push(referred);
    }
  }
  return checkIds(items) ?? checkReasoning(items, memory) ?? checkPairs(items) ?? { items };
}

function checkParameters(body: RequestBody): Refusal | undefined {
  const unknown = Object.keys(body).find((name) => !PARAMETERS.has(name));
  if (unknown !== undefined) {
    return refuse(`Unknown parameter: '${unknown}'.`, unknown, "unknown_parameter");
  }
  if (!body.model) return missing("model");
  if (typeof body.model !== "string") return wrongType("model", "a string");
  if (body.conversation && body.previous_response_id) {
    const message = "Only one of 'conversation' and 'previous_response_id' can be provided.";
    return refuse(message, "previous_response_id", "mutually_exclusive_parameters");
  }
  if (body.input === undefined && !body.previous_response_id && !body.prompt) {
    return missing("input");
  }
  if (body.input !== undefined && typeof body.input !== "string" && !Array.isArray(body.input)) {
    return wrongType("input", "a string or an array of items");
  }
  if (body.background && body.store === false) {
    return refuse("Background responses require 'store' to be true.", "background");
  }
  if ((body.max_output_tokens ?? Infinity) < MIN_MAX_OUTPUT_TOKENS) {
    const message = `Invalid 'max_output_tokens': integer below minimum value. Expected a value >= ${MIN_MAX_OUTPUT_TOKENS}, but got ${body.max_output_tokens} instead.`;
    return refuse(message, "max_output_tokens", "integer_below_min_value");
  }
  const nameless = (body.tools ?? []).findIndex((tool) => tool.type === "function" && !tool.name);
  return nameless >= 0 ? missing(`tools[${nameless}].name`) : undefined;
}

function checkMetadata(body: RequestBody): Refusal | undefined {
  const pairs = Object.entries(body.metadata ?? {});
  if (pairs.length > MAX_METADATA_PAIRS) {
    return refuse(`Invalid 'metadata': more than ${MAX_METADATA_PAIRS} pairs.`, "metadata");
  }
  for (const [key, value] of pairs) {
    if (typeof value !== "string") return wrongType(`metadata.${key}`, "a string");
    if (key.length > MAX_METADATA_KEY_CHARS || value.length > MAX_METADATA_VALUE_CHARS) {
      const code = "string_above_max_length";
      return refuse(`Invalid 'metadata.${key}': string too long.`, "metadata", code);
    }
  }
  return undefined;
}

function checkItems(body: RequestBody): Refusal | undefined {
  if (!Array.isArray(body.input)) return undefined;
  for (const [index, item] of (body.input as unknown[]).entries()) {
    const param = `input[${index}]`;
    if (typeof item !== "object" || item === null) return wrongType(param, "an object");
    const { type = "message", role } = item as { type?: string; role?: string };
    if (!ITEM_TYPES.has(type)) return wrongValue(`${param}.type`, type);
    if (type === "message" && !ROLES.has(role ?? "")) return wrongValue(`${param}.role`, role);
  }
  return undefined;
}

function wrongValue(param: string, value: string | undefined): Refusal {
  return refuse(`Invalid value: '${value}' for '${param}'.`, param, "invalid_value");
}

function missing(param: string): Refusal {
  return refuse(`Missing required parameter: '${param}'.`, param, "missing_required_parameter");
}

function wrongType(param: string, expected: string): Refusal {
  return refuse(`Invalid type for '${param}': expected ${expected}.`, param, "invalid_type");
}

function readBase(
  body: RequestBody,
  memory: Memory,
): { items: readonly ResponseInputItem[] } | Refusal {
  const previous = body.previous_response_id;
  if (previous) {
    const items = memory.contextOf(previous);
    if (items) return { items };
    const message = `Previous response with id '${previous}' not found.`;
    return refuse(message, "previous_response_id", "previous_response_not_found");
  }
  const { conversation } = body;
  if (!conversation) return { items: [] };
  const id = typeof conversation === "string" ? conversation : conversation.id;
  return { items: memory.conversation(id) };
}

function checkIds(items: readonly ResponseInputItem[]): Refusal | undefined {
  const seen = new Set<string>();
  for (const item of items) {
    if (!("id" in item) || !item.id) continue;
    if (seen.has(item.id)) {
      const hint = "Remove duplicate items from your input and try again.";
      return refuse(`Duplicate item found with id ${item.id}. ${hint}`, "input");
    }
    seen.add(item.id);
  }
  return undefined;
}

function itemNotFound(id: string): Refusal {
  const hint =
    "Items are not persisted when `store` is set to false. " +
    "Try again with `store` set to true, or remove this item from your input.";
  return refuse(`Item with id '${id}' not found. ${hint}`, "input", null, 404);
}

/** A reasoning item must be known or encrypted, and what it led to must follow it. */
function checkReasoning(items: readonly ResponseInputItem[], memory: Memory): Refusal | undefined {
  for (const [index, item] of items.entries()) {
    if (item.type !== "reasoning") continue;
    if (!item.encrypted_content && !memory.item(item.id)) return itemNotFound(item.id);
    const owner = item.encrypted_content ? encryptedFor(item.encrypted_content) : null;
    if (owner !== null && owner !== item.id) {
      const message = `The encrypted content for item ${item.id} could not be verified. Reason: Encrypted content item_id did not match the target item id.`;
      return refuse(message, null, "invalid_encrypted_content");
    }
    const next = items[index + 1];
    const fromUser = next && "role" in next && next.role !== "assistant";
    if (!next || fromUser || OUTPUTS.has(next.type ?? "")) {
      const message = `Item '${item.id}' of type 'reasoning' was provided without its required following item.`;
      return refuse(message, "input");
    }
  }
  return undefined;
}

/** Every call has its output, every output its call before it. */
function checkPairs(items: readonly ResponseInputItem[]): Refusal | undefined {
  const open = new Map<string, string>();
  const known = new Set<string>();
  for (const item of items) {
    const type = item.type ?? "message";
    const callId = "call_id" in item ? (item.call_id ?? "") : "";
    if (OUTPUT_OF[type]) {
      open.set(callId, type.replaceAll("_", " "));
      known.add(`${OUTPUT_OF[type]} ${callId}`);
    } else if (OUTPUTS.has(type)) {
      const kind = type.replaceAll("_", " ");
      if (!known.has(`${type} ${callId}`)) {
        const call = kind.startsWith("function") ? "tool call" : kind.replace(" output", "");
        return refuse(`No ${call} found for ${kind} with call_id ${callId}.`, "input");
      }
      open.delete(callId);
    }
  }
  for (const [callId, kind] of open) {
    return refuse(`No tool output found for ${kind} ${callId}.`, "input");
  }
  return undefined;
}
