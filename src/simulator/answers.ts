// Friendly mode: useful answers without a model and without a script.
import type { FunctionTool, ResponseInputItem } from "openai/resources/responses/responses";
import { instanceOf, readHints } from "./instance.ts";
import { composeReply } from "./replies.ts";
import { calls, text } from "./script.ts";
import type { AnswerOptions, AnswerStep, SimulatedRequest } from "./script.ts";

const NOTE = "(simulated answer; set OPENAI_API_KEY for a real model)";

/** Words that say nothing about what a tool is for. */
const EMPTY_WORDS = new Set(
  `a about all an and any are as at be by call can do for from function get given has have how i if in
  into is it its me my of on one or please return set show tell that the this times to tool use user value
  want was what when where which will with would you your`.split(/\s+/),
);

/** Calls a tool that fits, says what tools have answered, or follows the last user message. */
export function friendlyAnswer(request: SimulatedRequest, options: AnswerOptions): AnswerStep {
  const { body, items } = request;
  const said = items.filter((item) => roleOf(item) === "user").map(textOf);
  const message = said.at(-1) ?? "";
  const lastUser = items.findLastIndex((item) => roleOf(item) === "user");
  const outputs = items.slice(lastUser + 1).filter((item) => item.type === "function_call_output");
  if (outputs.length > 0) return text(`${reportOutputs(outputs, items)}\n\n${NOTE}`, options);
  const tool = chooseTool(request, message);
  if (tool) {
    const values = instanceOf(tool.parameters ?? { type: "object" }, readHints(message));
    return calls([{ name: tool.name, arguments: values as object }], options);
  }
  const reply = composeReply(said, [body.instructions ?? "", ...items.flatMap(contextOf)]);
  const format = body.text?.format;
  if (format?.type === "json_schema") {
    const hints = { ...readHints(message), message: reply };
    return text(JSON.stringify(instanceOf(format.schema, hints)), options);
  }
  if (format?.type === "json_object") {
    return text(JSON.stringify({ answer: reply, note: NOTE }), options);
  }
  return text(`${reply}\n\n${NOTE}`, options);
}

function roleOf(item: ResponseInputItem): string | undefined {
  return "role" in item ? item.role : undefined;
}

/** What the developer gave the model to know. */
function contextOf(item: ResponseInputItem): string[] {
  return ["system", "developer"].includes(roleOf(item) ?? "") ? [textOf(item)] : [];
}

function textOf(item: ResponseInputItem): string {
  const content = "content" in item ? item.content : undefined;
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? content : [];
  return parts
    .map((part) => ("text" in part ? part.text : ""))
    .join(" ")
    .trim();
}

function reportOutputs(
  outputs: readonly ResponseInputItem[],
  items: readonly ResponseInputItem[],
): string {
  const lines = outputs.map((output) => {
    if (output.type !== "function_call_output") return "";
    const call = items.find(
      (item) => item.type === "function_call" && item.call_id === output.call_id,
    );
    const name = call?.type === "function_call" ? call.name : "The tool";
    const value = typeof output.output === "string" ? output.output : JSON.stringify(output.output);
    return `${name} answered: ${value}`;
  });
  return lines.join("\n");
}

/** The tool that was asked for by `tool_choice`, else one whose words the message has. */
function chooseTool({ body }: SimulatedRequest, message: string): FunctionTool | undefined {
  const tools = (body.tools ?? []).filter((tool) => tool.type === "function");
  const choice = body.tool_choice ?? "auto";
  if (choice === "none") return undefined;
  if (typeof choice === "object" && choice.type === "function") {
    return tools.find((tool) => tool.name === choice.name);
  }
  const words = new Set(contentWords(message));
  const scored = tools.map((tool) => ({ tool, score: scoreTool(tool, words) }));
  const [best] = scored.toSorted((left, right) => right.score - left.score);
  return best && (best.score >= 2 || choice === "required") ? best.tool : undefined;
}

/** A word of the name counts two, one of the description one. */
function scoreTool(tool: FunctionTool, words: ReadonlySet<string>): number {
  const matches = (list: string[]) => new Set(list.filter((word) => words.has(word))).size;
  const name = tool.name.replace(/([a-z])([A-Z])/g, "$1 $2");
  return 2 * matches(contentWords(name)) + matches(contentWords(tool.description ?? ""));
}

function contentWords(sentence: string): string[] {
  const words = sentence.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return words.filter((word) => !EMPTY_WORDS.has(word)).map((word) => word.replace(/s$/, ""));
}
