import type { NumberedEvent } from "../../src/turn/events.ts";

type Part = Record<string, unknown>;

/** The texts of an item, each under the place that its deltas name. */
function textsOf(item: Part): Map<string, string> {
  const texts = new Map<string, string>();
  const add = (kind: string, at: unknown, text: unknown): void => {
    if (typeof text === "string" && text !== "") texts.set(`${kind} ${String(at)}`, text);
  };
  const parts = (name: string) => ((item[name] ?? []) as Part[]).entries();
  for (const [at, part] of parts("content")) add("content", at, part["text"] ?? part["refusal"]);
  for (const [at, part] of parts("summary")) add("summary", at, part["text"]);
  add("arguments", 0, item["arguments"] ?? item["input"]);
  return texts;
}

function placeOf(event: NumberedEvent): string {
  if ("summary_index" in event) return `summary ${String(event["summary_index"])}`;
  if ("content_index" in event) return `content ${String(event["content_index"])}`;
  return "arguments 0";
}

/**
 * The ids of finished items whose deltas, put together, are not their text. An SDK takes the text of the
 * finished item and would not notice; a user who reads along does.
 */
export function itemsShownOtherwise(events: readonly NumberedEvent[]): string[] {
  const shown = new Map<unknown, Map<string, string>>();
  const wrong: string[] = [];
  for (const event of events) {
    if (typeof event["delta"] === "string") {
      const texts = shown.get(event["item_id"]) ?? new Map<string, string>();
      const place = placeOf(event);
      texts.set(place, (texts.get(place) ?? "") + event["delta"]);
      shown.set(event["item_id"], texts);
    } else if (event.type === "response.output_item.done") {
      const item = event["item"] as Part & { id: string };
      // Outputs and calls of hosted tools come whole.
      if (!["message", "reasoning", "function_call"].includes(String(item["type"]))) continue;
      const texts = shown.get(item.id) ?? new Map<string, string>();
      const made = textsOf(item);
      const places = new Set([...texts.keys(), ...made.keys()]);
      if ([...places].some((place) => (texts.get(place) ?? "") !== (made.get(place) ?? ""))) {
        wrong.push(item.id);
      }
    }
  }
  return wrong;
}
