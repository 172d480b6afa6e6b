import type { TurnEvent } from "../turn/events.ts";

/**
 * Which item of a call's output an event is about. llama.cpp's server does not number its items; there
 * the id decides, and items are numbered as they come.
 */
export class Places {
  readonly #byId = new Map<string, number>();
  #next = 0;

  /** The event with its `output_index`, unless nothing says which item it is about. */
  locate(event: TurnEvent): TurnEvent {
    const given = event["output_index"];
    if (typeof given === "number") {
      this.#next = Math.max(this.#next, given + 1);
      return event;
    }
    const item = event["item"] as { id?: unknown } | null | undefined;
    const id = item?.id ?? event["item_id"];
    if (typeof id !== "string") return event;
    const place = this.#byId.get(id) ?? this.#next++;
    this.#byId.set(id, place);
    return { ...event, output_index: place };
  }
}
