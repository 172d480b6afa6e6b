import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { mergeDeltas } from "../src/events/merge.ts";
import { toolOutcome } from "../src/turn/serverCalls.ts";
import { ModelStreamTranslator } from "../src/events/translator.ts";
import type { ModelOutput } from "../src/events/translator.ts";
import type { ScriptedItem } from "../src/simulator/script.ts";
import type { TurnEvent } from "../src/turn/events.ts";
import { closeOpenItems } from "../src/turn/openItems.ts";
import { maxCallIdChars } from "../src/turn/pairs.ts";
import { accumulate, emit, scriptedItems } from "./setup/scriptedStreams.ts";

type Fields = Record<string, unknown>;

/** What a provider may do differently from OpenAI; each for the item with this place. */
interface Habits {
  /** Leaves out the item's `added`. */
  skipAdded: boolean[];
  /** Leaves out the item's `done`: the terminal event alone has it. */
  skipDone: boolean[];
  /** Never announces parts. */
  skipParts: boolean;
  ids: "own" | "missing" | "repeated" | "counted";
  callIds: "own" | "missing" | "repeated";
  /** The first place is this, in the stream alone. */
  firstPlace: 0 | 3;
  /** Says by ids alone which item an event is about. */
  skipPlaces: boolean;
  /** The terminal event lists no items. */
  emptyOutput: boolean;
}

const flags = fc.array(fc.boolean(), { minLength: 4, maxLength: 4 });

const habits: fc.Arbitrary<Habits> = fc
  .record({
    skipAdded: flags,
    skipDone: flags,
    skipParts: fc.boolean(),
    ids: fc.constantFrom("own", "missing", "repeated", "counted"),
    callIds: fc.constantFrom("own", "missing", "repeated"),
    firstPlace: fc.constantFrom(0 as const, 3 as const),
    skipPlaces: fc.boolean(),
    emptyOutput: fc.boolean(),
  })
  .map((any) => ({
    ...any,
    skipPlaces: any.skipPlaces && any.ids === "own",
    // Something has to say that an item is there, and where.
    skipDone: any.skipPlaces
      ? []
      : any.firstPlace > 0 || any.emptyOutput
        ? any.skipDone.map((skip, at) => skip && !any.skipAdded[at])
        : any.skipDone,
  }))
  .filter((any) => any.firstPlace === 0 || !any.skipDone.includes(true));

function withHabits(items: readonly ScriptedItem[], any: Habits) {
  const { events, response } = emit(items);
  const place = (event: TurnEvent) => event["output_index"] as number;
  const isSkipped = (event: TurnEvent): boolean => {
    if (event.type === "response.output_item.added") return any.skipAdded[place(event)] ?? false;
    if (event.type === "response.output_item.done") return any.skipDone[place(event)] ?? false;
    return any.skipParts && /_part\.(added|done)$/.test(event.type);
  };
  const id = (item: Fields, at: number): Fields => {
    const { id: _id, call_id: callId, ...rest } = item;
    const ids = {
      own: { id: item["id"] },
      missing: {},
      repeated: { id: `${String(item["type"])}_0123456789abcdef0123456789abcdef` },
      counted: { id: `msg_${at}` },
    }[any.ids];
    const callIds = { own: { call_id: callId }, missing: {}, repeated: { call_id: "call_0" } };
    return { ...rest, ...ids, ...(callId === undefined ? {} : callIds[any.callIds]) };
  };
  const sent = events
    .filter((event) => !isSkipped(event))
    .map((event) => {
      const { item_id: itemId, item, output_index: _place, ...rest } = event;
      const at = place(event);
      return {
        ...rest,
        ...(any.skipPlaces ? {} : { output_index: at + any.firstPlace }),
        ...(itemId === undefined || any.ids === "missing" ? {} : { item_id: itemId }),
        ...(item === undefined ? {} : { item: id(item as Fields, at) }),
      };
    });
  const output = response.output.map((item, at) => id(item as never, at));
  return { sent, output: any.emptyOutput ? [] : output };
}

const call = fc.record({
  items: scriptedItems,
  habits,
  cutAfter: fc.option(fc.nat(20), { nil: null, freq: 4 }),
});

interface PlayedCall {
  items: readonly ScriptedItem[];
  isCut: boolean;
  produced: ModelOutput | null;
}

/** A turn of these model calls: server tools are answered, cut calls are abandoned. */
function play(
  calls: readonly { items: ScriptedItem[]; habits: Habits; cutAfter: number | null }[],
) {
  const events: TurnEvent[] = [];
  const usedIds: string[] = [];
  const played: PlayedCall[] = [];
  let firstOutputIndex = 0;
  for (const { items, habits: any, cutAfter } of calls) {
    const { sent, output } = withHabits(items, any);
    const translator = new ModelStreamTranslator({
      firstOutputIndex,
      usedIds,
      isServerCall: (item) => item["name"] === "server_tool",
    });
    const isCut = cutAfter !== null && cutAfter < sent.length;
    for (const event of isCut ? sent.slice(0, cutAfter) : sent) {
      events.push(...translator.translate(event));
    }
    if (isCut) {
      firstOutputIndex = translator.nextOutputIndex;
      events.push(...closeOpenItems(events).events);
      played.push({ items, isCut, produced: null });
    } else {
      const finished = translator.finish(output);
      events.push(...finished.events);
      firstOutputIndex = finished.output.nextOutputIndex;
      for (const toolCall of finished.output.calls) {
        events.push(...toolOutcome(toolCall, { output: "done", isError: false }).events);
      }
      usedIds.push(...idsOf(finished.output.items));
      played.push({ items, isCut, produced: finished.output });
    }
    const shown = events.filter((event) => event.type === "response.output_item.added");
    usedIds.push(...idsOf(shown.map((event) => event["item"] as Fields)));
  }
  return { events, played };
}

function idsOf(items: readonly Fields[]): string[] {
  return items
    .flatMap((item) => [item["id"], item["call_id"]])
    .filter((id): id is string => typeof id === "string");
}

function placed(events: readonly TurnEvent[], type: string) {
  return events
    .filter((event) => event.type === type)
    .map((event) => ({
      index: event["output_index"] as number,
      item: event["item"] as Fields,
    }));
}

const turn = fc.array(call, { minLength: 1, maxLength: 3 });
const runs = { numRuns: 300 };

describe("ModelStreamTranslator", () => {
  test("makes one stream that OpenAI's client accepts, of whatever the providers send", () => {
    fc.assert(
      fc.property(turn, (calls) => {
        const { events } = play(calls);
        expect(() => accumulate(events)).not.toThrow();
        expect(closeOpenItems(events).events).toEqual([]);
      }),
      runs,
    );
  });

  test("numbers items without gaps, each with one unique id from added to done", () => {
    fc.assert(
      fc.property(turn, (calls) => {
        const { events } = play(calls);
        const added = placed(events, "response.output_item.added");
        const done = placed(events, "response.output_item.done");
        expect(added.map((each) => each.index)).toEqual(added.map((_, at) => at));
        expect(done.map((each) => each.index).sort((a, b) => a - b)).toEqual(
          added.map((each) => each.index),
        );
        for (const { index, item } of done) {
          expect(item).toMatchObject({ id: added[index]?.item["id"] as string });
          expect(item["type"]).toBe(added[index]?.item["type"]);
        }
        const ids = added.map((each) => each.item["id"]);
        expect(new Set(ids).size).toBe(ids.length);
      }),
      runs,
    );
  });

  test("loses no text and no call of an answer that came to its end", () => {
    fc.assert(
      fc.property(turn, (calls) => {
        for (const { items, produced } of play(calls).played) {
          if (produced === null) continue;
          const scripted = items.filter((item) => item.type === "text");
          const texts = scripted.map((item) => [...item.deltas].join("")).filter(Boolean);
          // An item that only the terminal event has comes after those that were streamed.
          expect(textsOf(produced.items).toSorted()).toEqual(texts.toSorted());
          const shown = produced.output.toSorted((left, right) => left.index - right.index);
          expect(textsOf(shown.map((entry) => entry.item))).toEqual(textsOf(produced.items));
        }
      }),
      runs,
    );
  });

  test("hands over every finished call of a server tool, whole, and shows it as mcp_call", () => {
    fc.assert(
      fc.property(turn, (calls) => {
        const { events, played } = play(calls);
        const callIds: string[] = [];
        for (const [at, { items, produced }] of played.entries()) {
          const { habits: any } = calls[at] as { habits: Habits };
          if (produced === null || any.emptyOutput) continue;
          const scripted = items.flatMap((item) =>
            item.type === "call" && item.name === "server_tool" ? [[...item.deltas].join("")] : [],
          );
          const asked = produced.calls.map((each) => each.arguments);
          expect(asked.toSorted()).toEqual(scripted.toSorted());
          callIds.push(...produced.calls.map((each) => each.callId));
          for (const each of produced.calls) {
            const own = produced.items.find((item) => item["call_id"] === each.callId);
            expect(own).toMatchObject({ type: "function_call", name: "server_tool" });
            const shown = events.findLast(
              (event) =>
                event.type === "response.output_item.done" &&
                event["output_index"] === each.outputIndex,
            );
            expect(shown?.["item"]).toMatchObject({ type: "mcp_call", id: each.itemId });
          }
        }
        expect(new Set(callIds).size).toBe(callIds.length);
      }),
      runs,
    );
  });

  test("leaves a well-behaved provider's stream as it is, but for places and numbers", () => {
    fc.assert(
      fc.property(scriptedItems, fc.nat(5), (items, firstOutputIndex) => {
        const { events, response } = emit(items);
        const translator = new ModelStreamTranslator({
          firstOutputIndex,
          isServerCall: () => false,
        });
        const seen = events.flatMap((event) => translator.translate(event));
        const finished = translator.finish(response.output);
        expect(finished.events).toEqual([]);
        expect(seen).toEqual(
          events.map((event) => ({
            ...event,
            output_index: (event["output_index"] as number) + firstOutputIndex,
          })),
        );
        expect(finished.output.items).toEqual(JSON.parse(JSON.stringify(response.output)));
      }),
    );
  });
});

describe("an item that its provider does not number", () => {
  const content = [{ type: "output_text", text: "Hi", annotations: [] }];
  const message = (id?: string) => ({ type: "message", role: "assistant", content, id });
  const added = (id?: string): TurnEvent => ({
    type: "response.output_item.added",
    item: { ...message(id), content: [] },
  });
  const delta = (item_id?: string): TurnEvent => ({
    type: "response.output_text.delta",
    delta: "Hi",
    item_id,
  });
  const done = (id?: string): TurnEvent => ({
    type: "response.output_item.done",
    item: message(id),
  });

  test.each([
    ["has one id", [added("msg_1"), delta("msg_1"), done("msg_1")]],
    ["is done under another id", [added("msg_1"), delta("msg_1"), done("msg_2")]],
    ["is added without an id", [added(), delta("msg_1"), done("msg_1")]],
    ["is written to without one", [added("msg_1"), delta(), done("msg_1")]],
    ["has none at all", [added(), delta(), done()]],
    ["is not added", [delta("msg_1"), done("msg_1")]],
    [
      "is numbered when it is added, and only then",
      [{ ...added("msg_1"), output_index: 0 }, delta("msg_1"), done("msg_1")],
    ],
  ])("and that %s comes once, as it is written where it was announced", (_, events) => {
    const translator = new ModelStreamTranslator({
      firstOutputIndex: 0,
      isServerCall: () => false,
    });
    const shown = events.flatMap((event) => translator.translate(event));
    const { output } = translator.finish([message("msg_1")]);
    expect(output.items).toMatchObject([{ content }]);
    const isAnnounced = events.some(({ type }) => type === "response.output_item.added");
    const deltas = shown.filter(({ type }) => type === "response.output_text.delta");
    expect(deltas).toHaveLength(isAnnounced ? 1 : 0);
  });

  test("is not taken for what an event of another kind is about", () => {
    const translator = new ModelStreamTranslator({
      firstOutputIndex: 0,
      isServerCall: () => false,
    });
    translator.translate(added("msg_1"));
    expect(translator.translate({ type: "keepalive" })).toEqual([]);
  });
});

describe("a provider's call id", () => {
  const done = (output_index: number, item: Fields): TurnEvent => ({
    type: "response.output_item.done",
    output_index,
    item,
  });
  const translate = (items: readonly Fields[], usedIds: string[] = []) => {
    const translator = new ModelStreamTranslator({
      firstOutputIndex: 0,
      isServerCall: () => false,
      usedIds,
    });
    for (const [at, item] of items.entries()) translator.translate(done(at, item));
    return translator.finish([]).output.items;
  };

  test("is kept whatever characters it has, and replaced where no client could send it back", () => {
    const ids = ["call 1/2+3=", "\0\ud800", "x".repeat(maxCallIdChars)];
    const types = ["function_call", "custom_tool_call", "computer_call", "apply_patch_call"];
    for (const type of types) {
      const call = (call_id: unknown) => ({ type, id: "", call_id });
      expect(translate(ids.map(call)).map((item) => item["call_id"])).toEqual(ids);
      const unusable = ["", 7, null, `${ids[2]}x`];
      for (const item of translate(unusable.map(call))) {
        expect(item["call_id"]).toMatch(/^call_[0-9a-f]{32}$/);
      }
    }
  });

  test("is replaced alike in a call and in the output that the provider put beside it", () => {
    const pair = [
      { type: "shell_call", id: "", call_id: "call_0" },
      { type: "shell_call_output", id: "", call_id: "call_0", output: [] },
    ];
    expect(translate(pair)).toMatchObject([{ call_id: "call_0" }, { call_id: "call_0" }]);
    const [call, output] = translate(pair, ["call_0"]);
    expect(call?.["call_id"]).not.toBe("call_0");
    expect(output?.["call_id"]).toBe(call?.["call_id"]);
  });

  test("is not made up for a search that the provider runs", () => {
    const search = { type: "tool_search_call", id: "", call_id: null, execution: "server" };
    expect(translate([search])).toMatchObject([{ call_id: null }]);
  });
});

function textsOf(items: readonly Fields[]): string[] {
  return items
    .filter((item) => item["type"] === "message")
    .map((item) => (item["content"] as { text?: string }[]).map((part) => part.text ?? "").join(""))
    .filter(Boolean);
}

describe("mergeDeltas", () => {
  const piece = fc.record({
    type: fc.constantFrom(
      "response.output_text.delta",
      "response.reasoning_summary_text.delta",
      "response.function_call_arguments.delta",
      "response.content_part.added",
      "response.image_generation_call.partial_image",
    ),
    item_id: fc.constantFrom("a", "b"),
    output_index: fc.nat(1),
    content_index: fc.nat(1),
    summary_index: fc.nat(1),
    delta: fc.string({ maxLength: 3 }),
  });
  const stream = fc.array(piece, { maxLength: 30 }) as fc.Arbitrary<TurnEvent[]>;

  const part = (event: TurnEvent): string => {
    const { delta: _delta, ...place } = event;
    return JSON.stringify(place);
  };
  const isText = (event: TurnEvent) => /(text|arguments)\.delta$/.test(event.type);

  test("says the same in fewer events: every part's text, and everything else in its order", () => {
    fc.assert(
      fc.property(stream, (events) => {
        const merged = mergeDeltas(events);
        const runsOf = (list: readonly TurnEvent[]) => {
          const joined: [string, string][] = [];
          for (const event of list) {
            const last = joined.at(-1);
            const delta = event["delta"] as string;
            if (isText(event) && last?.[0] === part(event)) last[1] += delta;
            else joined.push([part(event), delta]);
          }
          return joined;
        };
        expect(runsOf(merged)).toEqual(runsOf(events));
        expect(merged.map((event) => [part(event), event["delta"]])).toEqual(runsOf(events));
      }),
    );
  });

  test("changes nothing the second time", () => {
    fc.assert(
      fc.property(stream, (events) => {
        expect(mergeDeltas(mergeDeltas(events))).toEqual(mergeDeltas(events));
      }),
    );
  });

  test("keeps the log probabilities of all tokens", () => {
    const delta = (token: string) => ({
      type: "response.output_text.delta",
      item_id: "msg_1",
      output_index: 0,
      content_index: 0,
      delta: token,
      logprobs: [{ token }],
    });
    expect(mergeDeltas([delta("a"), delta("b")])).toEqual([
      { ...delta("ab"), logprobs: [{ token: "a" }, { token: "b" }] },
    ]);
  });
});
