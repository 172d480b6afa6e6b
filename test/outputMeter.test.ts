import { describe, expect, test } from "vitest";
import { OutputMeter } from "../src/activities/outputMeter.ts";
import type { TurnEvent } from "../src/turn/events.ts";

const large = "x".repeat(10_000);
const place = { output_index: 0 };
const inPart = { ...place, content_index: 0 };
const part = { type: "output_text", text: large, annotations: [] };
const item = { type: "message", content: [part] };
const added = { type: "response.output_item.added", ...place, item: { ...item, content: [] } };
const deltas = Array.from({ length: 10 }, (_, at) => ({
  type: "response.output_text.delta",
  ...inPart,
  delta: large.slice(at * 1_000, (at + 1) * 1_000),
  logprobs: [],
}));
const textDone = { type: "response.output_text.done", ...inPart, text: large };
const partDone = { type: "response.content_part.done", ...inPart, part };
const itemDone = { type: "response.output_item.done", ...place, item };
const completed = { type: "response.completed", response: { output: [item] } };
const picture = {
  type: "response.image_generation_call.partial_image",
  ...place,
  partial_image_b64: large,
};

function metered(events: readonly TurnEvent[], before = 0): number {
  const meter = new OutputMeter(before);
  return events.reduce((_, event) => meter.add(event), before);
}

describe("[13] the output of a model is counted", () => {
  const whole = JSON.stringify(item).length;

  test.each<[string, TurnEvent[]]>([
    ["in deltas", [added, ...deltas]],
    [
      "with everything that repeats it",
      [added, ...deltas, textDone, partDone, itemDone, completed],
    ],
    ["in a text that came whole", [added, textDone]],
    ["in a part that came whole", [added, partDone]],
    ["in an item that was announced whole", [{ ...added, item }, itemDone]],
    ["in an item that came whole", [itemDone, completed]],
    ["in a terminal event alone", [completed]],
  ])("once, %s", (_, events) => {
    const bytes = metered(events, 500) - 500;
    expect(bytes).toBeGreaterThanOrEqual(large.length);
    expect(bytes).toBeLessThan(whole + 500);
  });

  test("for every picture on the way, and every part", () => {
    expect(metered([picture, picture, picture])).toBeGreaterThan(3 * large.length);
    const parts = [0, 1, 2].map((index) => ({ ...textDone, content_index: index }));
    expect(metered(parts)).toBeGreaterThan(3 * large.length);
  });

  test("with the probabilities of its words", () => {
    const logprobs = [{ token: large, logprob: -1 }];
    expect(metered([{ ...deltas[0], logprobs } as TurnEvent])).toBeGreaterThan(large.length);
  });

  test("for each of the items that share a place", () => {
    expect(metered([itemDone, itemDone])).toBeGreaterThan(2 * large.length);
  });

  test("in bytes, and without what the request has said", () => {
    expect(metered([{ ...deltas[0], delta: "é" } as TurnEvent])).toBe(2);
    const tools = [{ description: large }];
    expect(metered([{ type: "response.created", response: { tools } }])).toBe(0);
  });
});
