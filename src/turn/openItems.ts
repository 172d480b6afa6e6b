import type { OutputEntry, TurnEvent } from "./events.ts";

interface OpenPart {
  part: Record<string, unknown>;
  text: string;
  done: boolean;
}

interface OpenItem extends OutputEntry {
  parts: Map<number, OpenPart>;
  summaries: Map<number, OpenPart>;
  /** Arguments, input or code of a call. */
  inputText: string;
}

/** What is left of output items that were announced and never finished. */
export interface ClosedItems {
  /** Events that finish them, in order, each item with status `incomplete`. */
  events: TurnEvent[];
  /** The items as those events leave them. */
  output: OutputEntry[];
}

const text = (value: unknown): string => (typeof value === "string" ? value : "");
const index = (value: unknown): number => (typeof value === "number" ? value : 0);

/** Finds the part that an event speaks of; servers that never announce parts get one made. */
function partOf(parts: Map<number, OpenPart>, at: number, type: string): OpenPart {
  let part = parts.get(at);
  if (part === undefined) {
    part = { part: { type }, text: "", done: false };
    parts.set(at, part);
  }
  return part;
}

function announcePart(parts: Map<number, OpenPart>, at: number, event: TurnEvent): void {
  const part = event["part"] as Record<string, unknown>;
  const field = part["type"] === "refusal" ? "refusal" : "text";
  parts.set(at, { part, text: text(part[field]), done: event.type.endsWith(".done") });
}

function applyToItem(item: OpenItem, event: TurnEvent): void {
  const content = (type: string) => partOf(item.parts, index(event["content_index"]), type);
  const summary = () => partOf(item.summaries, index(event["summary_index"]), "summary_text");
  switch (event.type) {
    case "response.content_part.added":
    case "response.content_part.done":
      announcePart(item.parts, index(event["content_index"]), event);
      break;
    case "response.output_text.delta":
      content("output_text").text += text(event["delta"]);
      break;
    case "response.output_text.done":
      content("output_text").text = text(event["text"]);
      break;
    case "response.output_text.annotation.added":
      annotate(content("output_text"), event["annotation"]);
      break;
    case "response.refusal.delta":
      content("refusal").text += text(event["delta"]);
      break;
    case "response.refusal.done":
      content("refusal").text = text(event["refusal"]);
      break;
    case "response.reasoning_text.delta":
      content("reasoning_text").text += text(event["delta"]);
      break;
    case "response.reasoning_text.done":
      content("reasoning_text").text = text(event["text"]);
      break;
    case "response.reasoning_summary_part.added":
    case "response.reasoning_summary_part.done":
      announcePart(item.summaries, index(event["summary_index"]), event);
      break;
    case "response.reasoning_summary_text.delta":
      summary().text += text(event["delta"]);
      break;
    case "response.reasoning_summary_text.done":
      summary().text = text(event["text"]);
      break;
    default:
      applyToInput(item, event);
  }
}

/** Where each type of event that writes a call's input carries the whole of it. */
const wholeInputFields: Record<string, string> = {
  "response.function_call_arguments.done": "arguments",
  "response.mcp_call_arguments.done": "arguments",
  "response.custom_tool_call_input.done": "input",
  "response.code_interpreter_call_code.done": "code",
};

function applyToInput(item: OpenItem, event: TurnEvent): void {
  const whole = wholeInputFields[event.type];
  if (whole !== undefined) item.inputText = text(event[whole]);
  const piece = event.type.replace(/delta$/, "done");
  if (piece !== event.type && piece in wholeInputFields) item.inputText += text(event["delta"]);
}

function annotate(part: OpenPart, annotation: unknown): void {
  const before = part.part["annotations"];
  part.part = {
    ...part.part,
    annotations: [...(Array.isArray(before) ? before : []), annotation],
  };
}

/** Follows a turn's events and knows what is open: announced by `added` and without its `done`. */
export class OpenItems {
  readonly #open = new Map<number, OpenItem>();

  apply(event: TurnEvent): void {
    const at = event["output_index"];
    if (typeof at !== "number") return;
    if (event.type === "response.output_item.added") {
      const item = event["item"] as Record<string, unknown>;
      const inputText = text(item["arguments"] ?? item["input"] ?? item["code"]);
      this.#open.set(at, { index: at, item, parts: new Map(), summaries: new Map(), inputText });
    } else if (event.type === "response.output_item.done") {
      this.#open.delete(at);
    } else {
      const item = this.#open.get(at);
      if (item !== undefined) applyToItem(item, event);
    }
  }

  /** Leaves an item to somebody else. */
  forget(index: number): void {
    this.#open.delete(index);
  }

  /** Finishes what is open, as `incomplete`. */
  close(): ClosedItems {
    const closed = [...this.#open.values()]
      .sort((left, right) => left.index - right.index)
      .map(closeItem);
    this.#open.clear();
    return {
      events: closed.flatMap((each) => each.events),
      output: closed.map((each) => each.entry),
    };
  }
}

function finishedPart({ part, text: content }: OpenPart): Record<string, unknown> {
  return part["type"] === "refusal" ? { ...part, refusal: content } : { ...part, text: content };
}

function textDone(part: OpenPart, place: Record<string, unknown>): TurnEvent[] {
  switch (part.part["type"]) {
    case "output_text":
      return [{ type: "response.output_text.done", ...place, text: part.text, logprobs: [] }];
    case "refusal":
      return [{ type: "response.refusal.done", ...place, refusal: part.text }];
    case "reasoning_text":
      return [{ type: "response.reasoning_text.done", ...place, text: part.text }];
    case "summary_text":
      return [{ type: "response.reasoning_summary_text.done", ...place, text: part.text }];
    default:
      return [];
  }
}

function closeParts(
  item: OpenItem,
  parts: Map<number, OpenPart>,
  indexName: "content_index" | "summary_index",
  doneType: string,
): TurnEvent[] {
  return [...parts]
    .filter(([, part]) => !part.done)
    .flatMap(([at, part]) => {
      const place = { item_id: item.item["id"], output_index: item.index, [indexName]: at };
      return [...textDone(part, place), { type: doneType, ...place, part: finishedPart(part) }];
    });
}

/** The fields that an item of its type has when it is finished, filled with what there is. */
function finishedFields(item: OpenItem): Record<string, unknown> {
  const contents = [...item.parts].sort(([a], [b]) => a - b).map(([, part]) => finishedPart(part));
  const summaries = [...item.summaries].sort(([a], [b]) => a - b);
  switch (item.item["type"]) {
    case "message":
      return { content: contents, status: "incomplete" };
    case "reasoning":
      return {
        summary: summaries.map(([, part]) => finishedPart(part)),
        ...(contents.length === 0 ? {} : { content: contents }),
        status: "incomplete",
      };
    case "function_call":
      return { arguments: item.inputText, status: "incomplete" };
    case "custom_tool_call":
      return { input: item.inputText, status: "incomplete" };
    case "code_interpreter_call":
      return { code: item.inputText, status: "incomplete" };
    case "mcp_call":
      return {
        arguments: item.inputText,
        output: null,
        error: "The call was not finished.",
        status: "incomplete",
      };
    default:
      return { status: "incomplete" };
  }
}

function closeItem(item: OpenItem): { events: TurnEvent[]; entry: OutputEntry } {
  const entry = { index: item.index, item: { ...item.item, ...finishedFields(item) } };
  const place = { item_id: item.item["id"], output_index: item.index };
  const failedCall: TurnEvent[] =
    item.item["type"] === "mcp_call" ? [{ type: "response.mcp_call.failed", ...place }] : [];
  const events = [
    ...closeParts(item, item.summaries, "summary_index", "response.reasoning_summary_part.done"),
    ...closeParts(item, item.parts, "content_index", "response.content_part.done"),
    ...failedCall,
    { type: "response.output_item.done", output_index: item.index, item: entry.item },
  ];
  return { events, entry };
}

/**
 * Closes what the recorded `events` of a turn left open, because the call or the tool that wrote
 * them was abandoned [6]. Pure: whoever closes a turn derives the same from the same record.
 */
export function closeOpenItems(events: Iterable<TurnEvent>): ClosedItems {
  const open = new OpenItems();
  for (const event of events) open.apply(event);
  return open.close();
}

/** Some servers leave out a message's content, or send it as text. */
function isMessageWithText({ item }: OutputEntry): boolean {
  const { type, content } = item;
  if (type !== "message" || !Array.isArray(content)) return false;
  return content.some((part: { text?: unknown } | null) => Boolean(part?.text));
}

/** Of closed items the ones that are kept as part of the answer: messages with text that was seen. */
export function partialAnswers(closed: ClosedItems): OutputEntry[] {
  return closed.output.filter(isMessageWithText);
}

/** The messages that subscribers saw whole, or closed as `incomplete`. */
export function finishedMessages(events: readonly TurnEvent[]): OutputEntry[] {
  return events
    .filter((event) => event.type === "response.output_item.done")
    .map((event) => ({
      index: index(event["output_index"]),
      item: event["item"] as Record<string, unknown>,
    }))
    .filter(isMessageWithText);
}
