import type { OutputEntry, TurnEvent } from "../turn/events.ts";
import { newId, newItemId } from "../turn/ids.ts";
import type { Item } from "../turn/items.ts";
import { answeredCall, callKey, callOf, isCallId, isNamedByCallId } from "../turn/pairs.ts";
import { OpenItems, partialAnswers } from "../turn/openItems.ts";
import { isMcpCallItem, mcpCallItem } from "../turn/serverCalls.ts";
import type { ToolCall } from "../turn/verdict.ts";
import { ItemParts } from "./itemParts.ts";
import { Places } from "./places.ts";

/** What one model call has produced, once its stream has ended. */
export interface ModelOutput {
  /** Items in the form that goes back to the model. */
  items: Item[];
  /** Items in the form that the response shows; calls of server tools are not among them. */
  output: OutputEntry[];
  /** Calls of server tools, in order. */
  calls: ToolCall[];
  nextOutputIndex: number;
}

interface Slot {
  index: number;
  /** The item's one id from `added` to `done`. */
  id: string;
  type: string;
  /** The one call id of a call, and of the output that answers it; `null` for other items. */
  callId: string | null;
  /** A call of a server tool, which the stream shows as `mcp_call`. */
  isServerCall: boolean;
  parts: ItemParts;
  done: boolean;
}

/** Ids from a provider are kept when they look unique; some servers give the same one every time. */
const trustedId = /^[a-z_]{1,24}_[A-Za-z0-9]{16,100}$/;

/** What can stand in a path: a reasoning item needs its own id, whatever it looks like. */
const anyId = /^[\w.:-]{1,128}$/;

/** Types that only the terminal and lifecycle events of the provider's own response have. */
const lifecycle = new Set([
  "response.created",
  "response.queued",
  "response.in_progress",
  "response.completed",
  "response.incomplete",
  "response.failed",
]);

/** What clients take for granted in an announced item (`accumulateResponse` of openai 7.57.0). */
const emptyFields: Record<string, Record<string, unknown>> = {
  message: { role: "assistant", content: [] },
  reasoning: { summary: [] },
  function_call: { arguments: "" },
  custom_tool_call: { input: "" },
};

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/**
 * Turns the events of one model call into events of the turn's stream: one response id, places that
 * go on across steps and attempts, one id per item. Providers that leave out ids, parts or whole
 * events are tolerated: what they leave out is announced late rather than lost.
 */
export class ModelStreamTranslator {
  readonly #slots = new Map<number, Slot>();
  readonly #isServerCall: (item: Record<string, unknown>) => boolean;
  readonly #usedIds: Set<string>;
  /** Our call ids by the provider's, for outputs of calls that the provider runs itself. */
  readonly #callIds = new Map<string, string>();
  readonly #open = new OpenItems();
  readonly #items = new Map<number, Item>();
  readonly #output: OutputEntry[] = [];
  readonly #calls = new Map<number, ToolCall>();
  /** Ids of server tools' calls that are on record, by place. */
  readonly #shownIds = new Map<number, string>();
  #places = new Places();
  #nextOutputIndex: number;

  /**
   * @param options `isServerCall` tells whether a `function_call` item is Turnkeeper's to answer;
   *   `usedIds` are the ids and call ids that the turn has shown or stored before.
   */
  constructor(options: {
    firstOutputIndex: number;
    isServerCall: (item: Record<string, unknown>) => boolean;
    usedIds?: Iterable<string>;
  }) {
    this.#nextOutputIndex = options.firstOutputIndex;
    this.#isServerCall = options.isServerCall;
    this.#usedIds = new Set(options.usedIds);
  }

  get nextOutputIndex(): number {
    return this.#nextOutputIndex;
  }

  /**
   * Follows what is on record of this call, so that the rest of it can be translated.
   *
   * @returns the events as the provider had sent them, places and parts counted from 0.
   */
  restore(recorded: readonly TurnEvent[]): TurnEvent[] {
    const first = this.#nextOutputIndex;
    const sent = recorded.map((event) => this.#asSent(event, first));
    for (const event of sent) this.translate(event);
    return sent;
  }

  /** Gives up what there is of this call: closes what is open [6]; what comes is another call's. */
  startOver(): TurnEvent[] {
    const { events } = this.#open.close();
    for (const each of [this.#slots, this.#items, this.#calls, this.#shownIds]) each.clear();
    this.#output.length = 0;
    this.#places = new Places();
    return events;
  }

  /** The events that clients see for one event of the provider; often none or one. */
  translate(event: TurnEvent): TurnEvent[] {
    const events = this.#translate(this.#places.locate(event));
    for (const each of events) this.#open.apply(each);
    return events;
  }

  /**
   * The whole outcome. `finalItems` is the output of the provider's terminal event; items that were
   * never finished in the stream are taken from there. What is left open after that is closed as
   * `incomplete`; its text stays part of the answer.
   */
  finish(finalItems: readonly unknown[]): { events: TurnEvent[]; output: ModelOutput } {
    const events: TurnEvent[] = [];
    const finished = [...this.#slots.values()].filter((slot) => slot.done).length;
    // Some providers do not number items as they list them; with equal counts nothing is missing.
    const missing = finalItems.length > finished ? finalItems.entries() : [];
    for (const [place, item] of missing) {
      if (this.#slots.get(place)?.done) continue;
      events.push(
        ...this.translate({ type: "response.output_item.done", output_index: place, item }),
      );
    }
    // What clients see of these is finished by the tools' steps.
    for (const index of this.#calls.keys()) this.#open.forget(index);
    const left = this.#open.close();
    for (const entry of partialAnswers(left)) {
      this.#items.set(entry.index, entry.item as Item);
      this.#output.push(entry);
    }
    const inOrder = <Value>(map: Map<number, Value>): Value[] =>
      [...map].sort(([a], [b]) => a - b).map(([, value]) => value);
    return {
      events: [...events, ...left.events],
      output: {
        items: inOrder(this.#items),
        output: this.#output,
        calls: inOrder(this.#calls),
        nextOutputIndex: this.#nextOutputIndex,
      },
    };
  }

  #asSent(event: TurnEvent, first: number): TurnEvent {
    const place = Number(event["output_index"]) - first;
    const type = event.type.replace(
      /^response\.mcp_call_arguments/,
      "response.function_call_arguments",
    );
    const sent = { ...event, type, output_index: place };
    const item = event["item"] as Record<string, unknown> | undefined;
    if (item === undefined || !isMcpCallItem(item)) return sent;
    this.#shownIds.set(place, String(item["id"]));
    return { ...sent, item: { type: "function_call", name: item["name"], arguments: "" } };
  }

  #translate(event: TurnEvent): TurnEvent[] {
    if (lifecycle.has(event.type)) return [];
    if (event.type === "response.output_item.added") return this.#added(event);
    if (event.type === "response.output_item.done") return this.#done(event);
    const slot = this.#slots.get(event["output_index"] as number);
    if (slot === undefined || slot.done) return [];
    const { sequence_number: _number, obfuscation: _obfuscation, ...fields } = event;
    const named = { ...fields, item_id: slot.id, output_index: slot.index };
    if (!slot.isServerCall) return slot.parts.locate(named);
    if (!event.type.startsWith("response.function_call_arguments.")) return [];
    const { name: _name, ...withoutName } = named as TurnEvent & { name?: unknown };
    const type = event.type.replace("function_call_arguments", "mcp_call_arguments");
    return [{ ...withoutName, type }];
  }

  #ownId(given: unknown, type: string): string {
    const pattern = type === "reasoning" ? anyId : trustedId;
    const isUsable = typeof given === "string" && pattern.test(given) && !this.#usedIds.has(given);
    const id = isUsable ? given : newItemId(type);
    this.#usedIds.add(id);
    return id;
  }

  #callId(item: Record<string, unknown>): string | null {
    const answered = answeredCall(item);
    if (answered !== null) return this.#callIds.get(callKey(answered)) ?? null;
    if (!isNamedByCallId(item)) return null;
    const given = item["call_id"];
    const id = isCallId(given) && !this.#usedIds.has(given) ? given : newId("toolCall");
    this.#usedIds.add(id);
    const call = callOf(item);
    if (call !== null) this.#callIds.set(callKey(call), id);
    return id;
  }

  #openSlot(place: number, item: Record<string, unknown>): Slot {
    const type = String(item["type"]);
    const shownId = this.#shownIds.get(place);
    const isServerCall = type === "function_call" && this.#isServerCall(item);
    const slot: Slot = {
      index: this.#nextOutputIndex++,
      id: shownId ?? (isServerCall ? newId("mcpCall") : this.#ownId(item["id"], type)),
      type,
      // Of a call on record the stream has shown everything but this.
      callId: shownId === undefined ? this.#callId(item) : null,
      isServerCall,
      parts: new ItemParts(),
      done: false,
    };
    this.#slots.set(place, slot);
    return slot;
  }

  #added(event: TurnEvent): TurnEvent[] {
    const item = event["item"] as Record<string, unknown> | null | undefined;
    const place = event["output_index"] as number;
    if (!item || this.#slots.has(place)) return [];
    const slot = this.#openSlot(place, item);
    const added = { type: event.type, output_index: slot.index };
    if (!slot.isServerCall) {
      return [{ ...added, item: { ...this.#named(slot, item), ...emptyFields[slot.type] } }];
    }
    return [
      { ...added, item: mcpCallItem(slot.id, text(item["name"])) },
      { type: "response.mcp_call.in_progress", item_id: slot.id, output_index: slot.index },
    ];
  }

  #named(slot: Slot, item: Record<string, unknown>): Item {
    const named: Item = { ...item, type: slot.type, id: slot.id };
    // The provider accepts it under the id that it gave only.
    if (item["id"] !== slot.id) delete named["encrypted_content"];
    return slot.callId === null ? named : { ...named, call_id: slot.callId };
  }

  #done(event: TurnEvent): TurnEvent[] {
    const item = event["item"] as Record<string, unknown> | null | undefined;
    const place = event["output_index"] as number;
    if (!item) return [];
    const late = this.#slots.has(place)
      ? []
      : this.#added({ ...event, type: "response.output_item.added" });
    const slot = this.#slots.get(place);
    if (slot === undefined || slot.done) return [];
    slot.done = true;
    if (slot.isServerCall) {
      this.#doneServerCall(slot, item);
      return late;
    }
    const finished = this.#named(slot, item);
    this.#items.set(slot.index, finished);
    this.#output.push({ index: slot.index, item: finished });
    return [...late, { type: event.type, output_index: slot.index, item: finished }];
  }

  /** The model goes on with the call itself; clients see an `mcp_call` that its tool's step ends. */
  #doneServerCall(slot: Slot, item: Record<string, unknown>): void {
    slot.callId ??= this.#callId(item);
    const call = {
      ...this.#named(slot, item),
      id: this.#ownId(item["id"], "function_call"),
      name: text(item["name"]),
      arguments: text(item["arguments"]),
    };
    this.#items.set(slot.index, call);
    this.#calls.set(slot.index, {
      callId: slot.callId ?? "",
      name: call.name,
      arguments: call.arguments,
      outputIndex: slot.index,
      itemId: slot.id,
    });
  }
}
