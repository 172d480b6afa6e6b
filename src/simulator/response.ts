// Response objects and ids as the Responses API writes them.
import { randomBytes } from "node:crypto";
import type {
  Response,
  ResponseCreateParams,
  ResponseInputItem,
  ResponseInputText,
  ResponseUsage,
} from "openai/resources/responses/responses";

/** A Response as it is on the wire: `output_text` is the SDK's own, `usage` is null until the end. */
export type WireResponse = Omit<Response, "output_text" | "usage"> & {
  usage: ResponseUsage | null;
  store: boolean;
};

/** A create request's JSON body. */
export type RequestBody = ResponseCreateParams;

type IdPrefix = "resp" | "msg" | "fc" | "rs" | "ws" | "call" | "req";

/** `resp_` and 50 hex digits, and so on for the other prefixes. */
export function newId(prefix: IdPrefix): string {
  return `${prefix}_${randomBytes(25).toString("hex")}`;
}

/** The Response as it is before anything was produced: every field of the request that is echoed. */
export function newResponse(body: RequestBody, id: string): WireResponse {
  const response: WireResponse = {
    id,
    object: "response",
    created_at: Math.floor(Date.now() / 1000),
    completed_at: null,
    status: body.background ? "queued" : "in_progress",
    access_programs: null,
    background: body.background ?? false,
    error: null,
    incomplete_details: null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    max_tool_calls: body.max_tool_calls ?? null,
    metadata: body.metadata ?? {},
    model: body.model ?? "",
    output: [],
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: body.previous_response_id ?? null,
    prompt_cache_key: body.prompt_cache_key ?? null,
    reasoning: { effort: null, summary: null, ...body.reasoning },
    safety_identifier: body.safety_identifier ?? null,
    service_tier: "default",
    store: body.store ?? true,
    temperature: body.temperature ?? 1,
    text: { verbosity: "medium", ...body.text, format: body.text?.format ?? { type: "text" } },
    tool_choice: body.tool_choice ?? "auto",
    tools: body.tools ?? [],
    top_logprobs: body.top_logprobs ?? 0,
    top_p: body.top_p ?? 1,
    truncation: body.truncation ?? "disabled",
    usage: null,
  };
  const conversation = conversationId(body);
  return conversation === undefined
    ? response
    : { ...response, conversation: { id: conversation } };
}

export function conversationId(body: RequestBody): string | undefined {
  return typeof body.conversation === "object" ? body.conversation?.id : body.conversation;
}

/** The request's own input as items: a string is one user message, message parts are lists. */
export function inputItems(body: RequestBody): ResponseInputItem[] {
  if (body.input === undefined || body.input === null) return [];
  if (typeof body.input === "string") {
    return [{ type: "message", role: "user", content: asParts("user", body.input) }];
  }
  return body.input.map((item) =>
    "content" in item && "role" in item && typeof item.content === "string"
      ? {
          ...item,
          type: "message",
          content: asParts(item.role, item.content),
        }
      : item,
  );
}

function asParts(role: string, text: string): ResponseInputText[] {
  // An assistant's parts are output_text; as input the API takes them alike.
  const type = (role === "assistant" ? "output_text" : "input_text") as "input_text";
  return [{ type, text }];
}
