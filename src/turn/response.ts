import { failureRules } from "./failures.ts";
import type { Failure } from "./failures.ts";
import { isTerminal } from "./turn.ts";
import type { Turn } from "./turn.ts";

/** A Response object of the Responses API. */
export type ResponseObject = Record<string, unknown> & {
  id: string;
  object: "response";
  status: string;
  output: unknown[];
};

/**
 * What the API answers for parameters that a request left out (API reference, "The response
 * object"); clients read these fields without checking for their presence.
 */
const parameterDefaults = {
  max_output_tokens: null,
  max_tool_calls: null,
  parallel_tool_calls: true,
  prompt_cache_key: null,
  reasoning: { effort: null, summary: null },
  safety_identifier: null,
  service_tier: "default",
  temperature: 1,
  text: { format: { type: "text" } },
  tool_choice: "auto",
  top_logprobs: 0,
  top_p: 1,
  truncation: "disabled",
  user: null,
};

function seconds(date: Date): number {
  return Math.floor(date.getTime() / 1000);
}

function wireStatus(turn: Turn): string {
  return turn.status === "admitted" || turn.status === "running" ? "in_progress" : turn.status;
}

/** The error codes that the openai package's types know; other classes are shown as `server_error`. */
function wireError(turn: Turn): { code: string; message: string } | null {
  if (turn.failure === null) return null;
  const { class: failureClass, code, message } = turn.failure;
  const isProvidersWord = code !== failureClass;
  const isServers = failureRules[failureClass].type === "server_error";
  return {
    code: isServers && !isProvidersWord ? "server_error" : shownCode(turn.failure),
    message,
  };
}

/** The code of a failure in OpenAI's words, which have one for every rate limit. */
export function shownCode({ class: failureClass, code }: Failure): string {
  return failureClass === "rate_limited" ? "rate_limit_exceeded" : code;
}

/** The Response object that stands for a turn, whatever its status. */
export function responseObject(turn: Turn): ResponseObject {
  const { request } = turn;
  return {
    ...parameterDefaults,
    ...request.parameters,
    id: turn.id,
    object: "response",
    created_at: seconds(turn.createdAt),
    completed_at: turn.endedAt && turn.status === "completed" ? seconds(turn.endedAt) : null,
    status: wireStatus(turn),
    background: request.background,
    error: wireError(turn),
    incomplete_details: turn.incompleteReason ? { reason: turn.incompleteReason } : null,
    instructions: request.instructions,
    metadata: request.metadata,
    model: turn.model,
    output: isTerminal(turn.status) ? (turn.output ?? []) : [],
    conversation: request.conversation === null ? null : { id: request.conversation },
    previous_response_id: request.previousTurnId,
    store: true,
    tools: request.tools,
    usage: turn.usage,
    ...(turn.degraded === null
      ? {}
      : { turnkeeper: { degraded: turn.degraded, original_model: turn.originalModel } }),
  };
}
