import type { OutputEntry, TurnEvent } from "./events.ts";

interface OpenPart {
  part: Record<string, unknown>;
  text: string;
  done: boolean;
}

interface OpenItem extends OutputEntry {
  parts: Map<number, OpenPart>;
  summaries: Map<number, OpenPart>;
  argumentText: string;
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
  const contentIndex = index(event["content_index"]);
  const summaryIndex = index(event["summary_index"]);
  switch (event.type) {
    case "response.content_part.added":
    case "response.content_part.done":
      announcePart(item.parts, contentIndex, event);
      break;
    case "response.output_text.delta":
      partOf(item.parts, contentIndex, "output_text").text += text(event["delta"]);
      break;
    case "response.refusal.delta":
      partOf(item.parts, contentIndex, "refusal").text += text(event["delta"]);
      break;
    case "response.reasoning_text.delta":
      partOf(item.parts, contentIndex, "reasoning_text").text += text(event["delta"]);
      break;
    case "response.reasoning_summary_part.added":
    case "response.reasoning_summary_part.done":
      announcePart(item.summaries, summaryIndex, event);
      break;
    case "response.reasoning_summary_text.delta":
      partOf(item.summaries, summaryIndex, "summary_text").text += text(event["delta"]);
      break;
    case "response.function_call_arguments.delta":
    case "response.mcp_call_arguments.delta":
    case "response.custom_tool_call_input.delta":
      item.argumentText += text(event["delta"]);
      break;
    default:
      break;
  }
}

function findOpenItems(events: Iterable<TurnEvent>): Map<number, OpenItem> {
  const open = new Map<number, OpenItem>();
  for (const event of events) {
    const at = event["output_index"];
    if (typeof at !== "number") continue;
    if (event.type === "response.output_item.added") {
      const item = event["item"] as Record<string, unknown>;
      open.set(at, {
        index: at,
        item,
        parts: new Map(),
        summaries: new Map(),
        argumentText: text(item["arguments"]),
      });
    } else if (event.type === "response.output_item.done") {
      open.delete(at);
    } else {
      const item = open.get(at);
      if (item !== undefined) applyToItem(item, event);
    }
  }
  return open;
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
      return { arguments: item.argumentText, status: "incomplete" };
    case "mcp_call":
      return {
        arguments: item.argumentText,
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
  const closed = [...findOpenItems(events).values()]
    .sort((left, right) => left.index - right.index)
    .map(closeItem);
  return {
    events: closed.flatMap((each) => each.events),
    output: closed.map((each) => each.entry),
  };
}
