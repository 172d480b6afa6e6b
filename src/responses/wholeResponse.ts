import { eventsOfItem } from "../turn/itemEvents.ts";
import type { UpstreamEvent } from "./answer.ts";

export type WholeResponse = { status?: unknown; output: unknown[]; [field: string]: unknown };

type Fields = Record<string, unknown>;

/** Whether this is a Response object as far as anything here reads it: it has its list of items. */
export function isWholeResponse(value: unknown): value is WholeResponse {
  return typeof value === "object" && value !== null && Array.isArray((value as Fields)["output"]);
}

/**
 * The events that an ended response stands for, in the order of a stream: each text as one delta,
 * everything else in its item's `added` and `done`. Without `sequence_number`.
 */
export function* eventsOfResponse(response: WholeResponse): Generator<UpstreamEvent> {
  const opened = { ...response, status: "in_progress", output: [], usage: null };
  yield { type: "response.created", response: opened };
  for (const [outputIndex, item] of response.output.entries()) {
    yield* eventsOfItem(ended(item as Fields), outputIndex);
  }
  yield { type: `response.${response.status as string}`, response };
}

/** A response that has failed shows the item that it was at as it was; nothing more comes of it. */
function ended(item: Fields): Fields {
  return item["status"] === "in_progress" ? { ...item, status: "incomplete" } : item;
}

/** A response is not the continuation of what was seen of it. */
export class ResponseDiffers extends Error {
  constructor() {
    super("The response is another one than its stream began.");
    this.name = "ResponseDiffers";
  }
}

/** Where an event writes to: its item and its part. */
function placeOf(event: UpstreamEvent): string {
  const { output_index, content_index, summary_index } = event;
  return JSON.stringify([output_index, content_index, summary_index]);
}

/**
 * What the events of a response lack that begins with the events `seen`, whose texts may have come in
 * any number of deltas.
 *
 * @throws ResponseDiffers when a text does not begin with what was seen of it.
 */
export function* withoutSeen(
  events: Iterable<UpstreamEvent>,
  seen: Iterable<UpstreamEvent>,
): Generator<UpstreamEvent> {
  const marks = new Set<string>();
  const texts = new Map<string, string>();
  const keyOf = (event: UpstreamEvent) => `${event.type} ${placeOf(event)}`;
  for (const event of seen) {
    marks.add(keyOf(event));
    if (typeof event["delta"] !== "string") continue;
    texts.set(keyOf(event), (texts.get(keyOf(event)) ?? "") + event["delta"]);
  }
  for (const event of events) {
    const text = texts.get(keyOf(event)) ?? "";
    const { delta } = event;
    if (typeof delta !== "string") {
      if (!marks.has(keyOf(event))) yield event;
    } else if (!delta.startsWith(text)) throw new ResponseDiffers();
    else if (delta.length > text.length) yield { ...event, delta: delta.slice(text.length) };
  }
}
