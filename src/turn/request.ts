import { Refusal } from "./failures.ts";
import { newItemId } from "./ids.ts";
import { userMessage } from "./items.ts";
import type { Item } from "./items.ts";
import { answeredCall, callOf, isCallId, maxCallIdChars } from "./pairs.ts";

/** What a caller asks for, in the words of `POST /v1/responses`. Unknown fields go to the model. */
export interface ResponseRequest {
  model?: string | null;
  input?: string | unknown[] | null;
  instructions?: string | null;
  conversation?: string | { id: string } | null;
  previous_response_id?: string | null;
  tools?: unknown[] | null;
  metadata?: Record<string, string> | null;
  background?: boolean | null;
  user?: string | null;
  safety_identifier?: string | null;
  [parameter: string]: unknown;
}

/** A request as it is recorded under its turn: checked, with ids, and nothing that is implied. */
export interface TurnRequest {
  input: Item[];
  instructions: string | null;
  /** The conversation that the caller named, `null` when Turnkeeper made one. */
  conversation: string | null;
  previousTurnId: string | null;
  /** Tools of the client and the provider; the agent's own are not among them. */
  tools: unknown[];
  metadata: Record<string, string>;
  background: boolean;
  user: string | null;
  /** Everything else, passed to the model as it came. */
  parameters: Record<string, unknown>;
}

/** Fields that Turnkeeper acts on itself; all others are parameters of the model call. */
const ownFields = new Set([
  "model",
  "input",
  "instructions",
  "conversation",
  "previous_response_id",
  "tools",
  "metadata",
  "background",
  "stream",
  "stream_options",
  "store",
]);

/** The Responses API's limits of `metadata`: 16 pairs, keys of 64 and values of 512 characters. */
const maxMetadataPairs = 16;
const maxMetadataKeyChars = 64;
const maxMetadataValueChars = 512;
/** Generous against the API's own ids, which have about 50 characters. */
const maxIdChars = 128;
const maxInputItems = 10_000;
/** The form of every item type of the API; which of them there are is the provider's business. */
const itemType = /^[a-z][a-z0-9_]{0,63}$/;

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function invalid(message: string, param: string): Refusal {
  return new Refusal("invalid_value", message, param);
}

/**
 * An id given by a caller: text of 1 to 128 characters from the set of URL-safe ones, so that it can
 * stand in a path, a column and a workflow id.
 */
export function checkId(value: unknown, param: string): string {
  if (typeof value !== "string" || value.length > maxIdChars || !/^[\w.:-]+$/.test(value)) {
    throw invalid(
      `'${param}' must be an id of 1 to ${maxIdChars} letters, digits or _ . : - characters.`,
      param,
    );
  }
  return value;
}

function optionalText(value: unknown, param: string): string | null {
  if (value === undefined || value === null) return null;
  if (typeof value !== "string") throw invalid(`'${param}' must be a string.`, param);
  return value;
}

function optionalBoolean(value: unknown, param: string, byDefault = false): boolean {
  if (value === undefined || value === null) return byDefault;
  if (typeof value !== "boolean") throw invalid(`'${param}' must be true or false.`, param);
  return value;
}

/** Checks `metadata` by the Responses API's limits: 16 pairs, keys <= 64, values <= 512 characters. */
export function checkMetadata(value: unknown): Record<string, string> {
  if (value === undefined || value === null) return {};
  if (!isObject(value)) throw invalid("'metadata' must be an object of strings.", "metadata");
  const pairs = Object.entries(value);
  if (pairs.length > maxMetadataPairs) {
    throw invalid(`'metadata' may have at most ${maxMetadataPairs} pairs.`, "metadata");
  }
  for (const [key, text] of pairs) {
    if (key.length > maxMetadataKeyChars) {
      throw invalid(`A key of 'metadata' has over ${maxMetadataKeyChars} characters.`, "metadata");
    }
    if (typeof text !== "string" || text.length > maxMetadataValueChars) {
      const problem = `'metadata.${key}' must be a string of at most ${maxMetadataValueChars} characters.`;
      throw invalid(problem, `metadata.${key}`);
    }
  }
  return value as Record<string, string>;
}

function checkItem(value: unknown, param: string): Item {
  if (!isObject(value)) throw invalid(`'${param}' must be an item object.`, param);
  const type = value["type"] ?? (value["role"] === undefined ? undefined : "message");
  if (typeof type !== "string" || !itemType.test(type)) {
    throw invalid(`'${param}.type' must name an item type.`, `${param}.type`);
  }
  if (type === "item_reference") {
    throw new Refusal(
      "unsupported_parameter",
      "Item references are not supported; send the item itself, or name its conversation.",
      param,
    );
  }
  if (type === "message") checkMessage(value, param);
  checkCall(value, param);
  const id = value["id"] ?? null;
  return { ...value, type, id: id === null ? newItemId(type) : checkId(id, `${param}.id`) };
}

function checkCall(value: Record<string, unknown>, param: string): void {
  const { type } = value;
  const call = callOf(value) ?? answeredCall(value);
  const isMissing = call === null && (type === "function_call" || type === "function_call_output");
  if (!isMissing && (call === null || isCallId(call.id))) return;
  const problem = `'${param}.call_id' must be a text of 1 to ${maxCallIdChars} characters.`;
  throw invalid(problem, `${param}.call_id`);
}

function checkMessage(value: Record<string, unknown>, param: string): void {
  const roles = ["user", "assistant", "system", "developer"];
  if (!roles.includes(value["role"] as string)) {
    throw invalid(`'${param}.role' must be one of ${roles.join(", ")}.`, `${param}.role`);
  }
  const { content } = value;
  if (typeof content === "string" || (Array.isArray(content) && content.every(isObject))) return;
  throw invalid(`'${param}.content' must be a string or a list of parts.`, `${param}.content`);
}

/**
 * Checks items from a caller and gives ids to those without.
 *
 * @throws Refusal `invalid_value` naming the first item that is wrong.
 */
export function checkItems(value: unknown, param: string): Item[] {
  if (!Array.isArray(value)) throw invalid(`'${param}' must be a list of items.`, param);
  if (value.length > maxInputItems) {
    throw invalid(`'${param}' may have at most ${maxInputItems} items.`, param);
  }
  const items = value.map((item, index) => checkItem(item, `${param}[${index}]`));
  const seen = new Set<string>();
  for (const item of items) {
    if (seen.has(item.id)) throw invalid(`The item id '${item.id}' appears twice.`, param);
    seen.add(item.id);
  }
  return items;
}

function checkInput(value: unknown): Item[] {
  if (value === undefined || value === null || value === "") {
    throw new Refusal(
      "missing_required_parameter",
      "'input' must be a text or a list of items that is not empty.",
      "input",
    );
  }
  if (typeof value === "string") return [userMessage(value)];
  const items = checkItems(value, "input");
  if (items.length === 0) throw invalid("'input' must have at least one item.", "input");
  return items;
}

function checkConversation(request: ResponseRequest): string | null {
  const { conversation } = request;
  if (conversation === undefined || conversation === null) return null;
  if ((request.previous_response_id ?? null) !== null) {
    throw invalid(
      "'conversation' and 'previous_response_id' cannot be used together.",
      "previous_response_id",
    );
  }
  return checkId(isObject(conversation) ? conversation["id"] : conversation, "conversation");
}

/** What the API offers and Turnkeeper cannot do is refused, never ignored. */
function refuseUnsupported(request: ResponseRequest): void {
  if (!optionalBoolean(request["store"], "store", true)) {
    throw new Refusal(
      "unsupported_parameter",
      "'store: false' is not supported: every turn is recorded before the model is called. Delete the response afterwards instead.",
      "store",
    );
  }
  refuseObfuscation(request["stream_options"] ?? {});
}

function refuseObfuscation(options: unknown): void {
  if (!isObject(options)) throw invalid("'stream_options' must be an object.", "stream_options");
  const name = "stream_options.include_obfuscation";
  const { include_obfuscation: asked, ...others } = options;
  const [unknown] = Object.keys(others);
  if (unknown !== undefined) {
    const param = `stream_options.${unknown}`;
    throw new Refusal("unknown_parameter", `There is no parameter '${param}'.`, param);
  }
  if (!optionalBoolean(asked, name)) return;
  throw new Refusal("unsupported_parameter", `'${name}' is not supported; leave it out.`, name);
}

function checkTools(value: unknown): unknown[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw invalid("'tools' must be a list.", "tools");
  for (const [index, tool] of value.entries()) {
    if (!isObject(tool) || typeof tool["type"] !== "string") {
      throw invalid(`'tools[${index}].type' must name a tool type.`, `tools[${index}].type`);
    }
    if (tool["type"] === "function" && typeof tool["name"] !== "string") {
      throw invalid(`'tools[${index}].name' must be a string.`, `tools[${index}].name`);
    }
  }
  return value;
}

/**
 * Turns a request body into the form that is recorded.
 *
 * @throws Refusal with the code and the field of the first thing that is wrong.
 */
export function checkRequest(request: ResponseRequest): TurnRequest {
  if (!isObject(request)) {
    throw new Refusal("invalid_value", "The request must be a JSON object.");
  }
  refuseUnsupported(request);
  const previous = request.previous_response_id ?? null;
  const passedOn = Object.entries(request).filter(
    ([name, value]) => !ownFields.has(name) && value !== null && value !== undefined,
  );
  const user = request.safety_identifier ?? request.user;
  return {
    input: checkInput(request.input),
    instructions: optionalText(request.instructions, "instructions"),
    conversation: checkConversation(request),
    previousTurnId: previous === null ? null : checkId(previous, "previous_response_id"),
    tools: checkTools(request.tools),
    metadata: checkMetadata(request.metadata),
    background: optionalBoolean(request.background, "background"),
    user: optionalText(user, "user"),
    parameters: Object.fromEntries(passedOn),
  };
}
