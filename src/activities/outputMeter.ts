import type { TurnEvent } from "../turn/events.ts";

/** Counts the bytes that the model writes, while it writes them and without counting any twice. */
export class OutputMeter {
  #bytes: number;
  /** Bytes of the deltas of items that are not finished, by their place. */
  readonly #open = new Map<unknown, number>();

  /** @param writtenBytes what was written before. */
  constructor(writtenBytes: number) {
    this.#bytes = writtenBytes;
  }

  /** Returns the bytes so far, this event's included. */
  add(event: TurnEvent): number {
    const place = event["output_index"];
    const { delta, item } = event as { delta?: unknown; item?: unknown };
    if (typeof delta === "string") {
      const bytes = Buffer.byteLength(delta);
      this.#open.set(place, (this.#open.get(place) ?? 0) + bytes);
      this.#bytes += bytes;
    } else if (event.type === "response.output_item.done") {
      // The whole item repeats what its deltas have said.
      this.#bytes += Buffer.byteLength(JSON.stringify(item ?? null)) - (this.#open.get(place) ?? 0);
      this.#open.delete(place);
    }
    return this.#bytes;
  }
}
