// What the simulator shall answer: steps, made by the builders below.
import type { ResponseError, ResponseInputItem } from "openai/resources/responses/responses";
import type { ScriptedUsage } from "./bill.ts";
import type { Gate } from "./gate.ts";
import type { RequestBody } from "./response.ts";

/** A request as it came in, in the order of arrival. */
export interface SimulatedRequest {
  /** Position among all requests since the start or the last `reset()`, from 0. */
  index: number;
  method: string;
  /** With the query, such as `/v1/responses/resp_1?stream=true`. */
  path: string;
  headers: Record<string, string | string[] | undefined>;
  /** `{}` where the request has no body. */
  body: RequestBody;
  /** POST /v1/responses: all that the model sees, the previous responses' items first. */
  items: readonly ResponseInputItem[];
  requestId: string;
}

/** One output item to produce. `deltas` is read lazily, one element per delta. */
export type ScriptedItem =
  | { type: "text"; deltas: Iterable<string>; annotations: readonly object[] }
  | { type: "refusal"; deltas: Iterable<string> }
  | { type: "call"; name: string; callId: string | undefined; deltas: Iterable<string> }
  | { type: "reasoning"; summary: readonly string[]; content: string | undefined }
  | { type: "web_search"; query: string };

/** What goes wrong in an answer when this many deltas are out (0: after `response.in_progress`). */
export type Disturbance = { afterDeltas: number } & (
  | { kind: "reset" | "eof" | "silence" }
  | { kind: "error"; code: string | null; message: string; eventLine: boolean }
  | { kind: "failed"; code: ResponseError["code"]; message: string }
  | { kind: "incomplete"; reason: IncompleteReason }
  | { kind: "inject"; frame: string }
);

export type IncompleteReason = "max_output_tokens" | "max_messages" | "content_filter" | "steered";

export interface AnswerOptions {
  /** The response's id; default: a new one. */
  id?: string;
  /** Between `response.in_progress` and the first delta; default 0. */
  firstDelayMs?: number;
  /** Between deltas, held as a rate: a late delta does not delay the next; default 0. */
  deltaDelayMs?: number;
  pauseAfter?: Gate | readonly Gate[];
  usage?: ScriptedUsage;
  /** Leaves out what other servers of this API leave out. */
  omit?: readonly ("sequence_number" | "usage")[];
}

interface Selectable {
  /** The step is only for a request that this accepts. */
  match?: (request: SimulatedRequest) => boolean;
  /** The step is never used up, and need not be used. */
  repeat?: boolean;
}

export interface AnswerStep extends Selectable {
  kind: "answer";
  items: readonly ScriptedItem[];
  options: AnswerOptions;
  disturbances: readonly Disturbance[];
}

/** An HTTP answer instead of a response. */
export interface HttpStep extends Selectable {
  kind: "http";
  status: number;
  headers: Record<string, string>;
  /** Sent as it is if it is a string, else as JSON. */
  body: unknown;
}

/** No answer: the socket is closed, or nothing is ever sent. */
export interface SocketStep extends Selectable {
  kind: "destroy" | "hang";
}

export type ComputeStep = (request: SimulatedRequest) => Step | Promise<Step>;

export interface ComputedStep extends Selectable {
  kind: "computed";
  compute: ComputeStep;
}

export type Step = AnswerStep | HttpStep | SocketStep | ComputedStep;

/** A step, or a function that makes one when its request has come. */
export type ScriptStep = Step | ComputeStep;

export function toStep(step: ScriptStep): Step {
  return typeof step === "function" ? { kind: "computed", compute: step } : step;
}

/** The step answers every request that reaches it, and may stay unused. */
export function always(step: ScriptStep): Step {
  return { ...toStep(step), repeat: true };
}

/** The step answers only requests that `match` accepts; others pass it by. */
export function when(match: (request: SimulatedRequest) => boolean, step: ScriptStep): Step {
  return { ...toStep(step), match };
}

function answer(items: readonly ScriptedItem[], options: AnswerOptions): AnswerStep {
  return { kind: "answer", items, options, disturbances: [] };
}

/** Several steps' items as one answer; of the options the later ones win. */
export function join(...steps: AnswerStep[]): AnswerStep {
  return {
    kind: "answer",
    items: steps.flatMap((step) => step.items),
    options: Object.assign({}, ...steps.map((step) => step.options)) as AnswerOptions,
    disturbances: steps.flatMap((step) => step.disturbances),
  };
}

/** A message. Its deltas are its words, unless `deltas` is given: then the text is what they make. */
export function text(
  content: string,
  options: AnswerOptions & { deltas?: Iterable<string>; annotations?: readonly object[] } = {},
): AnswerStep {
  const { deltas = splitWords(content), annotations = [], ...rest } = options;
  return answer([{ type: "text", deltas, annotations }], rest);
}

export function refusal(content: string, options: AnswerOptions = {}): AnswerStep {
  return answer([{ type: "refusal", deltas: splitWords(content) }], options);
}

export interface ScriptedCall {
  name: string;
  /** A string is sent as it is, valid JSON or not. */
  arguments: string | object;
  callId?: string;
}

/** Function calls, after a message if `text` is given. */
export function calls(
  list: readonly ScriptedCall[],
  options: AnswerOptions & { text?: string } = {},
): AnswerStep {
  const { text: said, ...rest } = options;
  const items = list.map((call): ScriptedItem => {
    const json =
      typeof call.arguments === "string" ? call.arguments : JSON.stringify(call.arguments);
    const deltas = json.match(/[^]{1,8}/gu) ?? [];
    return { type: "call", name: call.name, callId: call.callId, deltas };
  });
  return join(...(said === undefined ? [] : [text(said)]), answer(items, rest));
}

/** A reasoning item, each element of `summary` a part of it; put an answer behind it with `join`. */
export function reasoning(
  summary: string | readonly string[],
  options: AnswerOptions & { content?: string } = {},
): AnswerStep {
  const { content, ...rest } = options;
  const parts = typeof summary === "string" ? [summary] : summary;
  return answer([{ type: "reasoning", summary: parts, content }], rest);
}

/** A web_search_call; put an answer behind it with `join`. */
export function hostedCall(query: string, options: AnswerOptions = {}): AnswerStep {
  return answer([{ type: "web_search", query }], options);
}

/** Words with the white space before them. */
export function splitWords(content: string): string[] {
  return content.match(/\s*\S+|\s+$/g) ?? [];
}
