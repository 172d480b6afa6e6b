// Turns scripted items into the events of the Responses API, in its order.
import type {
  ResponseFunctionToolCall,
  ResponseOutputMessage,
  ResponseOutputRefusal,
  ResponseOutputText,
  ResponseReasoningItem,
} from "openai/resources/responses/responses";
import { newId } from "./response.ts";
import type { WireResponse } from "./response.ts";
import { splitWords } from "./script.ts";
import type { ScriptedItem } from "./script.ts";

/** An event without its number, which is given when it is sent. */
export interface Emission {
  event: { type: string; [field: string]: unknown };
  /** For a delta: the text that is billed. */
  delta?: string;
  reasoning?: boolean;
}

/** Driven with `next(true)` to stop: the open item is closed as incomplete, and no other follows. */
export type Emissions = Generator<Emission, boolean, boolean | undefined>;

interface Place {
  item_id: string;
  output_index: number;
}

/** Adds the items to `response.output` while it yields their events; true if it was stopped. */
export function* emitItems(
  items: readonly ScriptedItem[],
  response: WireResponse,
  encryptReasoning: boolean,
): Emissions {
  for (const item of items) {
    if (yield* emitItem(item, response, encryptReasoning)) return true;
  }
  return false;
}

function emitItem(item: ScriptedItem, response: WireResponse, encryptReasoning: boolean) {
  if (item.type === "call") return emitCall(item, response);
  if (item.type === "reasoning") return emitReasoning(item, response, encryptReasoning);
  if (item.type === "web_search") return emitWebSearch(item.query, response);
  return emitMessage(item, response);
}

function* emitMessage(
  scripted: Extract<ScriptedItem, { type: "text" | "refusal" }>,
  response: WireResponse,
): Emissions {
  const item: ResponseOutputMessage = {
    id: newId("msg"),
    type: "message",
    status: "in_progress",
    content: [],
    role: "assistant",
  };
  const place = yield* added(item, response);
  const at = { ...place, content_index: 0 };
  const part: ResponseOutputText | ResponseOutputRefusal =
    scripted.type === "refusal"
      ? { type: "refusal", refusal: "" }
      : { type: "output_text", annotations: [], logprobs: [], text: "" };
  item.content.push(part);
  yield { event: { type: "response.content_part.added", ...at, part } };
  let stopped: boolean;
  if (part.type === "refusal") {
    const type = "response.refusal.delta";
    stopped = yield* emitDeltas(scripted.deltas, { type, ...at }, (delta) => {
      part.refusal += delta;
    });
    yield { event: { type: "response.refusal.done", ...at, refusal: part.refusal } };
  } else {
    const type = "response.output_text.delta";
    stopped = yield* emitDeltas(scripted.deltas, { type, ...at, logprobs: [] }, (delta) => {
      part.text += delta;
    });
    if (scripted.type === "text" && !stopped) yield* emitAnnotations(scripted, part, at);
    yield { event: { type: "response.output_text.done", ...at, text: part.text, logprobs: [] } };
  }
  yield { event: { type: "response.content_part.done", ...at, part } };
  return yield* done(item, place, stopped);
}

function* emitAnnotations(
  scripted: { annotations: readonly object[] },
  part: ResponseOutputText,
  at: object,
): Generator<Emission, void, boolean | undefined> {
  for (const [annotation_index, annotation] of scripted.annotations.entries()) {
    part.annotations.push(annotation as ResponseOutputText.URLCitation);
    const type = "response.output_text.annotation.added";
    yield { event: { type, ...at, annotation_index, annotation } };
  }
}

function* emitCall(
  scripted: Extract<ScriptedItem, { type: "call" }>,
  response: WireResponse,
): Emissions {
  const item: ResponseFunctionToolCall & { id: string } = {
    id: newId("fc"),
    type: "function_call",
    status: "in_progress",
    arguments: "",
    call_id: scripted.callId ?? newId("call").slice(0, 29),
    name: scripted.name,
  };
  const place = yield* added(item, response);
  const type = "response.function_call_arguments.delta";
  const stopped = yield* emitDeltas(scripted.deltas, { type, ...place }, (delta) => {
    item.arguments += delta;
  });
  yield {
    event: {
      type: "response.function_call_arguments.done",
      ...place,
      arguments: item.arguments,
      name: item.name,
    },
  };
  return yield* done(item, place, stopped);
}

function* emitReasoning(
  scripted: Extract<ScriptedItem, { type: "reasoning" }>,
  response: WireResponse,
  encrypt: boolean,
): Emissions {
  const item: ResponseReasoningItem = { id: newId("rs"), type: "reasoning", summary: [] };
  const place = yield* added(item, response);
  for (const [summary_index, words] of scripted.summary.entries()) {
    const at = { ...place, summary_index };
    const part = { type: "summary_text" as const, text: "" };
    item.summary.push(part);
    yield { event: { type: "response.reasoning_summary_part.added", ...at, part } };
    const type = "response.reasoning_summary_text.delta";
    const stopped = yield* emitDeltas(
      splitWords(words),
      { type, ...at },
      (delta) => {
        part.text += delta;
      },
      true,
    );
    yield { event: { type: "response.reasoning_summary_text.done", ...at, text: part.text } };
    yield { event: { type: "response.reasoning_summary_part.done", ...at, part } };
    if (stopped) return yield* done(item, place, true);
  }
  if (scripted.content !== undefined) {
    const at = { ...place, content_index: 0 };
    const part = { type: "reasoning_text" as const, text: "" };
    item.content = [part];
    yield { event: { type: "response.content_part.added", ...at, part } };
    const type = "response.reasoning_text.delta";
    const stopped = yield* emitDeltas(
      splitWords(scripted.content),
      { type, ...at },
      (delta) => {
        part.text += delta;
      },
      true,
    );
    yield { event: { type: "response.reasoning_text.done", ...at, text: part.text } };
    yield { event: { type: "response.content_part.done", ...at, part } };
    if (stopped) return yield* done(item, place, true);
  }
  if (encrypt) item.encrypted_content = encrypted(scripted, item.id);
  return yield* done(item, place, false);
}

const encryptedPrefix = "gAAAAA";

/** Opaque to clients, as the real one is, and like it bound to its item's id. */
function encrypted(scripted: { summary: readonly string[] }, id: string): string {
  const content = Buffer.from(JSON.stringify([id, ...scripted.summary]));
  return `${encryptedPrefix}${content.toString("base64url")}`;
}

/** The id of the item that this content was encrypted for; `null` where it is none of ours. */
export function encryptedFor(content: string): string | null {
  try {
    const text = Buffer.from(content.slice(encryptedPrefix.length), "base64url").toString();
    return String((JSON.parse(text) as unknown[])[0]);
  } catch {
    return null;
  }
}

function* emitWebSearch(query: string, response: WireResponse): Emissions {
  const item = {
    id: newId("ws"),
    type: "web_search_call" as const,
    status: "in_progress" as "in_progress" | "completed",
    action: { type: "search" as const, query, queries: [query] },
  };
  const place = yield* added(item, response);
  for (const state of ["in_progress", "searching", "completed"]) {
    yield { event: { type: `response.web_search_call.${state}`, ...place } };
  }
  return yield* done(item, place, false);
}

function* added(
  item: WireResponse["output"][number] & { id: string },
  response: WireResponse,
): Generator<Emission, Place, boolean | undefined> {
  const output_index = response.output.push(item) - 1;
  yield { event: { type: "response.output_item.added", output_index, item } };
  return { item_id: item.id, output_index };
}

function* done(item: { status?: string | undefined }, place: Place, stopped: boolean): Emissions {
  item.status = stopped ? "incomplete" : "completed";
  yield {
    event: { type: "response.output_item.done", output_index: place.output_index, item },
  };
  return stopped;
}

function* emitDeltas(
  deltas: Iterable<string>,
  fields: Emission["event"],
  append: (delta: string) => void,
  reasoning = false,
): Emissions {
  for (const delta of deltas) {
    append(delta);
    if (yield { event: { ...fields, delta }, delta, reasoning }) return true;
  }
  return false;
}
