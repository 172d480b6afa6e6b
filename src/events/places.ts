import type { TurnEvent } from "../turn/events.ts";

/** Events that write to an item, and say so by nothing else where a server names no item. */
const writes =
  /^response\.(output_text|refusal|reasoning|content_part|function_call_arg|custom_tool)/;

/** As far as a provider sends it. */
interface AnyItem {
  id?: unknown;
  type?: unknown;
}

/**
 * Which item of a call's output an event is about. llama.cpp's server does not number its items: there
 * the id says it, else the order in which things come.
 */
export class Places {
  readonly #byId = new Map<string, number>();
  /** Items that were added and are not done, by place. */
  readonly #open = new Map<number, AnyItem>();
  #next = 0;
  #last: number | undefined;

  /** The event with its `output_index`, unless it is about no item. */
  locate(event: TurnEvent): TurnEvent {
    const given = event["output_index"];
    const item = (event["item"] ?? {}) as AnyItem;
    const id = item.id ?? event["item_id"];
    const place = typeof given === "number" ? given : this.#find(event.type, item, id);
    if (place === undefined) return event;
    this.#last = place;
    this.#next = Math.max(this.#next, place + 1);
    if (typeof id === "string") this.#byId.set(id, place);
    if (event.type === "response.output_item.added") this.#open.set(place, item);
    if (event.type === "response.output_item.done") this.#open.delete(place);
    return place === given ? event : { ...event, output_index: place };
  }

  #find(eventType: string, item: AnyItem, id: unknown): number | undefined {
    if (eventType === "response.output_item.added") return this.#next;
    const named = typeof id === "string" ? this.#byId.get(id) : undefined;
    if (eventType === "response.output_item.done") {
      if (named !== undefined && this.#open.has(named)) return named;
      return this.#findOpen((open) => open.type === item.type) ?? this.#next;
    }
    if (named !== undefined) return named;
    if (!writes.test(eventType)) return undefined;
    return id === undefined ? this.#last : (this.#findOpen((open) => !open.id) ?? this.#next);
  }

  #findOpen(isIt: (item: AnyItem) => boolean): number | undefined {
    return [...this.#open].find(([, item]) => isIt(item))?.[0];
  }
}
