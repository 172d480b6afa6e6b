import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { eventsOfResponse, ResponseDiffers, withoutSeen } from "../src/responses/wholeResponse.ts";

type Event = { type: string; [field: string]: unknown };

const message = (text: string) => ({
  type: "message",
  id: "msg_1",
  status: "completed",
  content: [{ type: "output_text", text, annotations: [] }],
});
const reasoning = (text: string) => ({
  type: "reasoning",
  id: "rs_1",
  summary: [{ type: "summary_text", text }],
});
const call = (text: string) => ({
  type: "function_call",
  id: "fc_1",
  call_id: "call_1",
  name: "f",
  arguments: text,
});

const items = fc.array(
  fc
    .tuple(fc.constantFrom(message, reasoning, call), fc.string({ minLength: 1 }))
    .map(([make, text]) => make(text)),
  { maxLength: 4 },
);

/** The same events with each text in as many deltas as it has characters. */
function* inPieces(events: Iterable<Event>): Generator<Event> {
  for (const event of events) {
    if (typeof event["delta"] !== "string") yield event;
    else for (const piece of event["delta"]) yield { ...event, delta: piece };
  }
}

/** Texts by part, and everything else as it is: what a subscriber has in the end. */
function read(events: Iterable<Event>): unknown {
  const texts = new Map<string, string>();
  const others: string[] = [];
  for (const event of events) {
    const { delta, ...place } = event;
    const key = JSON.stringify(place);
    if (typeof delta === "string") texts.set(key, (texts.get(key) ?? "") + delta);
    else others.push(JSON.stringify(event));
  }
  return { texts: [...texts], others };
}

describe("what the record lacks of a response", () => {
  test("makes the whole with what was seen, wherever the stream broke", () => {
    fc.assert(
      fc.property(items, fc.nat(), (output, cut) => {
        const response = { status: "completed", output };
        const stream = [...inPieces(eventsOfResponse(response))];
        const seen = stream.slice(0, cut % (stream.length + 1));
        const rest = [...withoutSeen(eventsOfResponse(response), seen)];
        expect(read([...seen, ...rest])).toEqual(read(stream));
      }),
    );
  });

  test("ends the item that a failed response was at, as incomplete", () => {
    const output = [message("One"), { ...message("Tw"), id: "msg_2", status: "in_progress" }];
    const events = [...eventsOfResponse({ status: "failed", output })];
    const ended = events.filter(({ type }) => type === "response.output_item.done");
    expect(ended.map((event) => (event["item"] as { status: string }).status)).toEqual([
      "completed",
      "incomplete",
    ]);
  });

  test("is refused when a text does not begin with what was seen of it", () => {
    const stream = [...eventsOfResponse({ status: "completed", output: [message("One two")] })];
    const other = eventsOfResponse({ status: "completed", output: [message("Another")] });
    expect(() => [...withoutSeen(other, stream)]).toThrow(ResponseDiffers);
  });
});
