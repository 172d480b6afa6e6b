import type { OutputEntry, TurnEvent } from "../turn/events.ts";
import { newId, newItemId } from "../turn/ids.ts";
import { isFunctionCall } from "../turn/items.ts";
import type { Item } from "../turn/items.ts";
import type { ToolCall } from "../turn/verdict.ts";

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
  /** Set for a call of a server tool, which the stream shows as `mcp_call`. */
  serverCallId: string | null;
  done: boolean;
}

/** The label under which responses show the tools that Turnkeeper runs itself. */
export const serverLabel = "turnkeeper";

/** Ids from a provider are kept when they look unique; some servers give the same one every time. */
const trustedId = /^[a-z_]+_[A-Za-z0-9]{16,}$/;

/** Types that only the terminal and lifecycle events of the provider's own response have. */
const lifecycle = new Set([
  "response.created",
  "response.queued",
  "response.in_progress",
  "response.completed",
  "response.incomplete",
  "response.failed",
]);

function mcpCallItem(slot: Slot, name: unknown, argumentText: string): Record<string, unknown> {
  return {
    id: slot.id,
    type: "mcp_call",
    status: "in_progress",
    server_label: serverLabel,
    name,
    arguments: argumentText,
    output: null,
    error: null,
    approval_request_id: null,
  };
}

/**
 * Turns the events of one model call into events of the turn's stream: one response id, places that
 * go on across steps and attempts, one id per item. Providers that leave out ids, parts or whole
 * events are tolerated: what their `done` items say is announced late rather than lost.
 */
export class ModelStreamTranslator {
  readonly #slots = new Map<number, Slot>();
  readonly #isServerCall: (item: Record<string, unknown>) => boolean;
  readonly #items = new Map<number, Item>();
  readonly #output: OutputEntry[] = [];
  readonly #calls = new Map<number, ToolCall>();
  #nextOutputIndex: number;

  /** @param options `isServerCall` tells whether a `function_call` item is Turnkeeper's to answer. */
  constructor(options: {
    firstOutputIndex: number;
    isServerCall: (item: Record<string, unknown>) => boolean;
  }) {
    this.#nextOutputIndex = options.firstOutputIndex;
    this.#isServerCall = options.isServerCall;
  }

  get nextOutputIndex(): number {
    return this.#nextOutputIndex;
  }

  /** The events that clients see for one event of the provider; often none or one. */
  translate(event: TurnEvent): TurnEvent[] {
    if (lifecycle.has(event.type)) return [];
    if (event.type === "response.output_item.added") return this.#added(event);
    if (event.type === "response.output_item.done") return this.#done(event);
    const slot = this.#slots.get(event["output_index"] as number);
    if (slot === undefined || slot.done) return [];
    const { sequence_number: _number, obfuscation: _obfuscation, ...fields } = event;
    const own = { ...fields, output_index: slot.index };
    const named = "item_id" in fields ? { ...own, item_id: slot.id } : own;
    if (slot.serverCallId === null) return [named];
    const isArguments = event.type.startsWith("response.function_call_arguments.");
    if (!isArguments) return [];
    const { name: _name, ...withoutName } = named as Record<string, unknown>;
    return [
      { ...withoutName, type: event.type.replace("function_call_arguments", "mcp_call_arguments") },
    ];
  }

  /**
   * The whole outcome. `finalItems` is the output of the provider's terminal event; items that were
   * never finished in the stream are taken from there.
   */
  finish(finalItems: readonly unknown[]): { events: TurnEvent[]; output: ModelOutput } {
    const events: TurnEvent[] = [];
    for (const [place, item] of finalItems.entries()) {
      if (this.#slots.get(place)?.done) continue;
      events.push(
        ...this.translate({ type: "response.output_item.done", output_index: place, item }),
      );
    }
    const inOrder = <Value>(map: Map<number, Value>): Value[] =>
      [...map].sort(([a], [b]) => a - b).map(([, value]) => value);
    return {
      events,
      output: {
        items: inOrder(this.#items),
        output: this.#output,
        calls: inOrder(this.#calls),
        nextOutputIndex: this.#nextOutputIndex,
      },
    };
  }

  #open(place: number, item: Record<string, unknown>): Slot {
    const type = String(item["type"]);
    const given = item["id"];
    const isServerCall = type === "function_call" && this.#isServerCall(item);
    const ownId = typeof given === "string" && trustedId.test(given) ? given : newItemId(type);
    const slot: Slot = {
      index: this.#nextOutputIndex++,
      id: isServerCall ? newId("mcpCall") : ownId,
      type,
      serverCallId: isServerCall ? ownId : null,
      done: false,
    };
    this.#slots.set(place, slot);
    return slot;
  }

  #added(event: TurnEvent): TurnEvent[] {
    const item = event["item"] as Record<string, unknown> | null | undefined;
    const place = event["output_index"] as number;
    if (!item || this.#slots.has(place)) return [];
    const slot = this.#open(place, item);
    if (slot.serverCallId === null) {
      return [{ type: event.type, output_index: slot.index, item: { ...item, id: slot.id } }];
    }
    const shown = mcpCallItem(slot, item["name"], "");
    return [
      { type: event.type, output_index: slot.index, item: shown },
      { type: "response.mcp_call.in_progress", item_id: slot.id, output_index: slot.index },
    ];
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
    const finished = { ...item, type: slot.type, id: slot.serverCallId ?? slot.id } as Item;
    this.#items.set(slot.index, finished);
    if (slot.serverCallId !== null && isFunctionCall(finished)) {
      this.#calls.set(slot.index, {
        callId: finished.call_id,
        name: finished.name,
        arguments: finished.arguments,
        outputIndex: slot.index,
        itemId: slot.id,
      });
      return late;
    }
    this.#output.push({ index: slot.index, item: finished });
    return [...late, { type: event.type, output_index: slot.index, item: finished }];
  }
}

/** The events that show the outcome of a server tool's call, and the item as it stays. */
export function toolOutcomeEvents(
  call: ToolCall,
  outcome: { output: string; isError: boolean },
): { events: TurnEvent[]; entry: OutputEntry } {
  const place = { item_id: call.itemId, output_index: call.outputIndex };
  const item = {
    id: call.itemId,
    type: "mcp_call",
    status: outcome.isError ? "failed" : "completed",
    server_label: serverLabel,
    name: call.name,
    arguments: call.arguments,
    output: outcome.isError ? null : outcome.output,
    error: outcome.isError ? outcome.output : null,
    approval_request_id: null,
  };
  return {
    events: [
      {
        type: outcome.isError ? "response.mcp_call.failed" : "response.mcp_call.completed",
        ...place,
      },
      { type: "response.output_item.done", output_index: call.outputIndex, item },
    ],
    entry: { index: call.outputIndex, item },
  };
}
