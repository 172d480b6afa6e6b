import type { TurnEvent } from "../turn/events.ts";

/** The part that an event of this type writes to, as it is announced. */
function emptyPart(eventType: string): Record<string, unknown> | undefined {
  const kind = eventType.split(".").at(1) ?? "";
  switch (kind) {
    case "output_text":
      return { type: "output_text", text: "", annotations: [], logprobs: [] };
    case "refusal":
      return { type: "refusal", refusal: "" };
    case "reasoning_text":
      return { type: "reasoning_text", text: "" };
    case "reasoning_summary_text":
      return { type: "summary_text", text: "" };
    default:
      return undefined;
  }
}

/** The parts of one item that have been announced. */
export class ItemParts {
  /** Their places, by the provider's own. */
  readonly #contents = new Map<number, number>();
  readonly #summaries = new Map<number, number>();

  /** An event with its part numbered from 0 without gaps, behind the part's `added` if that is missing. */
  locate(event: TurnEvent): TurnEvent[] {
    const announces = /^response\.(content|reasoning_summary)_part\.(added|done)$/.exec(event.type);
    const given = event["part"] as Record<string, unknown> | undefined;
    const part = announces === null ? emptyPart(event.type) : given;
    if (!part) return announces === null ? [event] : [];
    const isSummary = event.type.startsWith("response.reasoning_summary_");
    const [field, places, type] = isSummary
      ? (["summary_index", this.#summaries, "response.reasoning_summary_part.added"] as const)
      : (["content_index", this.#contents, "response.content_part.added"] as const);
    const theirs = typeof event[field] === "number" ? event[field] : 0;
    const known = places.get(theirs);
    const place = known ?? places.size;
    places.set(theirs, place);
    const whole = part["type"] === "output_text" ? { annotations: [], ...part } : part;
    const { item_id, output_index } = event;
    const added = { type, item_id, output_index, [field]: place, part: whole };
    const isAdded = announces?.[2] === "added";
    if (isAdded) return known === undefined ? [added] : [];
    const own = { ...event, [field]: place };
    return known === undefined ? [added, own] : [own];
  }
}
