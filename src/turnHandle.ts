import { parseEvent } from "./turn/events.ts";
import type { NumberedEvent } from "./turn/events.ts";
import { outputText } from "./turn/items.ts";
import type { Item } from "./turn/items.ts";
import { responseObject } from "./turn/response.ts";
import type { ResponseObject } from "./turn/response.ts";
import type { Turn } from "./turn/turn.ts";
import type { Turns } from "./turns.ts";

/** How a turn ended. */
export interface TurnResult {
  status: Turn["status"];
  /** The text of the answer. */
  text: string;
  response: ResponseObject;
  turn: Turn;
}

/** One turn, as its starter holds it. */
export class TurnHandle {
  readonly id: string;
  readonly conversationId: string;
  /** False when the same request had started the turn before. */
  readonly isNew: boolean;
  readonly #turns: Turns;
  readonly #turn: Turn;

  constructor(turns: Turns, turn: Turn, isNew: boolean) {
    this.#turns = turns;
    this.#turn = turn;
    this.id = turn.id;
    this.conversationId = turn.conversationId;
    this.isNew = isNew;
  }

  /**
   * The turn's events after number `after` (default: all), until its end: what has been, then what
   * comes. Leaving the loop costs nothing and cancels nothing.
   *
   * @throws Refusal `stream_expired` when the events have been dropped by age.
   */
  async *events(
    options: { after?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<NumberedEvent> {
    const turn = await this.#turns.readAlsoDryRun(this.id);
    for await (const batch of await this.#turns.watch(turn, options)) yield* batch.map(parseEvent);
  }

  /** Waits for the end of the turn, however it ends. */
  async result(options: { signal?: AbortSignal } = {}): Promise<TurnResult> {
    const turn = await this.#turns.waitForEnd(this.#turn, options.signal);
    const text = outputText((turn.output ?? []) as Item[]);
    return { status: turn.status, text, response: responseObject(turn), turn };
  }

  /** Asks for the turn's end; what was produced is kept, marked so [12]. */
  async cancel(): Promise<void> {
    await this.#turns.cancel(this.id);
  }
}
