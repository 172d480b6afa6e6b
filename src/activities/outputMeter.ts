import type { TurnEvent } from "../turn/events.ts";

/**
 * Counts the bytes of JSON that the model writes [13], while it writes them and without counting any
 * twice. Of an event only what it says counts, not its type and place.
 */
export class OutputMeter {
  readonly #bytesBefore: number;
  #bytes: number;
  /** Bytes of the items that are not finished, by the item's place and the part's. */
  readonly #open = new Map<unknown, Map<string, number>>();

  /** @param writtenBytes what was written before. */
  constructor(writtenBytes: number) {
    this.#bytesBefore = writtenBytes;
    this.#bytes = writtenBytes;
  }

  /** Returns the bytes so far, this event's included. */
  add(event: TurnEvent): number {
    const place = event["output_index"];
    if (place === undefined) this.#addAnswer(event);
    else this.#addToItem(place, event);
    return this.#bytes;
  }

  /** The terminal event repeats all items; some providers have sent none of them before. */
  #addAnswer(event: TurnEvent): void {
    const response = event["response"] as { output?: unknown } | null | undefined;
    if (!Array.isArray(response?.output)) return;
    this.#bytes = Math.max(this.#bytes, this.#bytesBefore + jsonBytes(response.output));
  }

  #addToItem(place: unknown, event: TurnEvent): void {
    const parts = this.#open.get(place) ?? new Map<string, number>();
    this.#open.set(place, parts);
    if (event.type === "response.output_item.done") {
      // The whole item repeats what its parts have said.
      const known = [...parts.values()].reduce((sum, bytes) => sum + bytes, 0);
      this.#bytes += Math.max(0, jsonBytes(event["item"]) - known);
      this.#open.delete(place);
      return;
    }
    const part = `${String(event["content_index"])}/${String(event["summary_index"])}`;
    const known = parts.get(part) ?? 0;
    const added = addedBytes(event, known);
    parts.set(part, known + added);
    this.#bytes += added;
  }
}

/** What says where an event belongs. */
const placeFields = new Set([
  "type",
  "sequence_number",
  "item_id",
  "output_index",
  "content_index",
  "summary_index",
]);

/** What an event adds to a part of which so many bytes are known. */
function addedBytes(event: TurnEvent, known: number): number {
  const { delta, logprobs } = event;
  if (typeof delta === "string") {
    const hasLogprobs = Array.isArray(logprobs) && logprobs.length > 0;
    return Buffer.byteLength(delta) + (hasLogprobs ? jsonBytes(logprobs) : 0);
  }
  const said = Object.entries(event).filter(([field]) => !placeFields.has(field));
  const bytes = said.reduce((sum, [, value]) => sum + jsonBytes(value), 0);
  return event.type.endsWith(".done") ? Math.max(0, bytes - known) : bytes;
}

function jsonBytes(value: unknown): number {
  return Buffer.byteLength(JSON.stringify(value ?? null));
}
