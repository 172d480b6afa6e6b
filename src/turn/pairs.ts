/** Calls whose output is an item of its own that the client, or a tool of Turnkeeper, sends. */
export type CallType =
  | "function_call"
  | "custom_tool_call"
  | "shell_call"
  | "apply_patch_call"
  | "computer_call"
  | "local_shell_call"
  | "tool_search_call"
  | "mcp_approval_request";

/** How the two items of one type of call find each other: by the first of these fields that is set. */
interface PairType {
  output: string;
  callFields: readonly string[];
  outputFields: readonly string[];
}

const callId = ["call_id"] as const;
const byCallId = (output: string): PairType => ({
  output,
  callFields: callId,
  outputFields: callId,
});

/**
 * All pairs of the Responses API (openai 7.57.0, `ResponseInputItem`). Hosted calls carry their
 * output; `program` waits for the provider.
 */
const pairTypes: Readonly<Record<CallType, PairType>> = {
  function_call: byCallId("function_call_output"),
  custom_tool_call: byCallId("custom_tool_call_output"),
  shell_call: byCallId("shell_call_output"),
  apply_patch_call: byCallId("apply_patch_call_output"),
  computer_call: byCallId("computer_call_output"),
  tool_search_call: byCallId("tool_search_output"),
  local_shell_call: {
    output: "local_shell_call_output",
    callFields: ["call_id", "id"],
    // The output's `id` is the call's `call_id`; some clients send `call_id` as well.
    outputFields: ["call_id", "id"],
  },
  mcp_approval_request: {
    output: "mcp_approval_response",
    callFields: ["id"],
    outputFields: ["approval_request_id"],
  },
};

const callTypeOfOutput: ReadonlyMap<unknown, CallType> = new Map(
  Object.entries(pairTypes).map(([type, { output }]) => [output, type as CallType]),
);

/** Which call: `id` is its `call_id`, or that of an approval request. */
export interface CallRef {
  type: CallType;
  id: string;
  /** It may be answered and need not: its response was cut short. */
  isOptional?: true;
}

type Fields = Readonly<Record<string, unknown>>;

/** A search that the provider runs itself takes no part. */
function isProviders(type: CallType, item: Fields): boolean {
  return type === "tool_search_call" && item["execution"] === "server";
}

function refBy(type: CallType, item: Fields, fields: readonly string[]): CallRef | null {
  if (isProviders(type, item)) return null;
  const id = fields.map((field) => item[field]).find((value) => typeof value === "string");
  return id === undefined ? null : { type, id };
}

function isCallType(type: unknown): type is CallType {
  return typeof type === "string" && Object.hasOwn(pairTypes, type);
}

/** The call that an item is; `null` for any other item. */
export function callOf(item: Fields): CallRef | null {
  const { type } = item;
  return isCallType(type) ? refBy(type, item, pairTypes[type].callFields) : null;
}

/** The call that an item answers; `null` where it answers none. */
export function answeredCall(item: Fields): CallRef | null {
  const type = callTypeOfOutput.get(item["type"]);
  return type === undefined ? null : refBy(type, item, pairTypes[type].outputFields);
}

/** The type of the items that answer calls of this type. */
export function outputTypeOf(type: CallType): string {
  return pairTypes[type].output;
}

/** Whether an item is a call that its output names by `call_id`. */
export function isNamedByCallId(item: Fields): boolean {
  const { type } = item;
  if (!isCallType(type) || isProviders(type, item)) return false;
  return pairTypes[type].callFields[0] === "call_id";
}

/** Calls are the same where these texts are. */
export function callKey(call: CallRef): string {
  return `${call.type} ${call.id}`;
}

/**
 * The calls that no later item answers, in order, those of `before` first. Some providers use the
 * same call ids again in every answer, so an output before its call does not count.
 */
export function unansweredCalls(
  items: readonly Fields[],
  before: readonly CallRef[] = [],
): CallRef[] {
  const open = new Map(before.map((call) => [callKey(call), call]));
  for (const item of items) {
    const call = callOf(item);
    if (call !== null) open.set(callKey(call), call);
    const answered = answeredCall(item);
    if (answered !== null) open.delete(callKey(answered));
  }
  return [...open.values()];
}

/** Generous: some gateways write a model's thought signature into the ids of its calls. */
export const maxCallIdChars = 16_384;

/**
 * Whether a value can be a call's id: text of 1 to {@link maxCallIdChars} characters, whichever they
 * are, for it lies in JSON alone and stands in no path and no key.
 */
export function isCallId(value: unknown): value is string {
  return typeof value === "string" && value !== "" && value.length <= maxCallIdChars;
}
