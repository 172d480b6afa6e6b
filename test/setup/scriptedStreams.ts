import fc from "fast-check";
import { accumulateResponse } from "openai/lib/responses/ResponseAccumulator";
import type { Response } from "openai/resources/responses/responses";
import { emitItems } from "../../src/simulator/emit.ts";
import { newResponse } from "../../src/simulator/response.ts";
import type { WireResponse } from "../../src/simulator/response.ts";
import type { ScriptedItem } from "../../src/simulator/script.ts";
import type { TurnEvent } from "../../src/turn/events.ts";

const deltas = fc.array(fc.string({ unit: "grapheme", minLength: 1, maxLength: 5 }), {
  maxLength: 4,
});

const citation = fc.record({
  type: fc.constant("url_citation"),
  url: fc.webUrl(),
  title: fc.string({ maxLength: 5 }),
  start_index: fc.nat(9),
  end_index: fc.nat(9),
});

/** Everything that a model can answer with, as the simulator writes it. */
export const scriptedItems: fc.Arbitrary<ScriptedItem[]> = fc.array(
  fc.oneof(
    fc.record({
      type: fc.constant("text" as const),
      deltas,
      annotations: fc.array(citation, { maxLength: 2 }),
    }),
    fc.record({ type: fc.constant("refusal" as const), deltas }),
    fc.record({
      type: fc.constant("call" as const),
      name: fc.constantFrom("server_tool", "client_tool"),
      callId: fc.constant(undefined),
      deltas,
    }),
    fc.record({
      type: fc.constant("reasoning" as const),
      summary: fc.array(fc.lorem({ maxCount: 3 }), { maxLength: 2 }),
      content: fc.option(fc.lorem({ maxCount: 3 }), { nil: undefined }),
    }),
    fc.record({ type: fc.constant("web_search" as const), query: fc.lorem({ maxCount: 2 }) }),
  ),
  { maxLength: 4 },
);

export interface EmittedStream {
  /** From the first `output_item.added` to the last `output_item.done`. */
  events: TurnEvent[];
  /** The response with its final output. */
  response: WireResponse;
}

/** The provider's events for the items, each as it was when it was sent. */
export function emit(items: readonly ScriptedItem[]): EmittedStream {
  const response = newResponse({ model: "gpt-test", input: "Hi" }, "resp_upstream");
  const events: TurnEvent[] = [];
  for (const { event } of emitItems(items, response, true)) events.push(structuredClone(event));
  return { events, response };
}

/** What OpenAI's own client makes of a stream; throws where that client would. */
export function accumulate(events: readonly TurnEvent[]): Response {
  const response = newResponse({ model: "gpt-test", input: "Hi" }, "resp_turn");
  let seen: Response | undefined;
  for (const event of [{ type: "response.created", response }, ...events]) {
    seen = accumulateResponse(event as never, seen);
  }
  return seen as Response;
}

/** All text that the deltas of one event type carry for one item, by its place. */
export function deltaText(events: readonly TurnEvent[], type: string, index: number): string {
  return events
    .filter((event) => event.type === type && event["output_index"] === index)
    .map((event) => event["delta"] as string)
    .join("");
}
