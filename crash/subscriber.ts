import { setTimeout as delay } from "node:timers/promises";
import OpenAI, { APIError } from "openai";
import type {
  ResponseCreateParamsBase,
  ResponseOutputItem,
} from "openai/resources/responses/responses";
import { isTerminalEvent } from "../src/turn/events.ts";
import type { NumberedEvent } from "../src/turn/events.ts";

/** The HTTP status of a gateway whose servers are away; every other one is an answer. */
export const comeAgain = 503;
const reconnectAfterMs = 100;
/** A stream without any event for this long is given up for another gateway. */
const defaultSilenceMs = 4_000;

/** The body of a request, save `stream`. */
export type Asked = Omit<ResponseCreateParamsBase, "stream">;

export interface SubscriberOptions {
  silenceMs?: number;
  /** Of the request that asks for the turn. */
  headers?: Record<string, string>;
  /** Told of each event as it comes. */
  onEvent?: (event: NumberedEvent) => void;
}

/**
 * A user's end of a turn: an unchanged OpenAI client that comes back, at the next gateway, with the
 * number of the last event it saw, until it has seen the end.
 */
export class Subscriber {
  readonly events: NumberedEvent[] = [];
  /** What gateways have refused; none of it should be. */
  readonly refusals: string[] = [];
  turnId: string | null = null;
  connections = 0;
  /** Why its last connection ended before the turn. */
  lastError: unknown = null;
  readonly #urls: readonly string[];
  /** `null`: the turn is asked for by somebody else, who tells its id. */
  readonly #asked: Asked | null;
  readonly #silenceMs: number;
  readonly #headers: Record<string, string>;
  readonly #onEvent: (event: NumberedEvent) => void;
  #current = new AbortController();
  #away: Promise<unknown> = Promise.resolve();

  constructor(urls: readonly string[], asked: Asked | null, options: SubscriberOptions = {}) {
    this.#urls = urls;
    this.#asked = asked;
    this.#silenceMs = options.silenceMs ?? defaultSilenceMs;
    this.#headers = { "idempotency-key": crypto.randomUUID(), ...options.headers };
    this.#onEvent = options.onEvent ?? (() => {});
  }

  /** The gateway that it is connected to. */
  get url(): string {
    return this.#urls[(this.connections - 1) % this.#urls.length] as string;
  }

  /** The turn's output, once its end was seen. */
  output(): ResponseOutputItem[] {
    const response = this.events.at(-1)?.["response"] as { output?: ResponseOutputItem[] };
    return response.output ?? [];
  }

  /** Breaks its connection; it comes back. */
  disconnect(): void {
    this.#current.abort();
  }

  /** Breaks its connection, and comes back when `until` resolves. */
  leave(until: Promise<unknown>): void {
    this.#away = until;
    this.disconnect();
  }

  /** Resolves with the last event of the turn; rejects when `signal` aborts before. */
  async follow(signal: AbortSignal): Promise<NumberedEvent> {
    for (;;) {
      signal.throwIfAborted();
      await this.#away;
      try {
        const last = await this.#connect(signal);
        if (last !== null) return last;
      } catch (error) {
        this.lastError = error;
        // Without a status nothing has answered.
        if (error instanceof APIError && ![undefined, comeAgain].includes(error.status)) {
          this.refusals.push(`${error.status} ${error.message}`);
        }
      }
      await delay(reconnectAfterMs);
    }
  }

  async #connect(signal: AbortSignal): Promise<NumberedEvent | null> {
    this.connections += 1;
    const client = new OpenAI({ baseURL: `${this.url}/v1`, apiKey: "none", maxRetries: 0 });
    this.#current = new AbortController();
    const options = { signal: AbortSignal.any([signal, this.#current.signal]) };
    const giveUp = () => this.#current.abort();
    const silence = setTimeout(giveUp, this.#silenceMs);
    try {
      const stream = await this.#open(client, options);
      for await (const event of stream) {
        silence.refresh();
        const numbered = event as unknown as NumberedEvent;
        this.events.push(numbered);
        this.#onEvent(numbered);
        if (event.type === "response.created") this.turnId = event.response.id;
        if (isTerminalEvent(event.type)) return numbered;
      }
      return null;
    } finally {
      clearTimeout(silence);
    }
  }

  #open(client: OpenAI, options: { signal: AbortSignal }) {
    if (this.turnId === null) {
      const asked = { ...this.#asked, stream: true } as const;
      return client.responses.create(asked, { ...options, headers: this.#headers });
    }
    const last = this.events.at(-1)?.sequence_number;
    const after = last === undefined ? {} : { starting_after: last };
    return client.responses.retrieve(this.turnId, { stream: true, ...after }, options);
  }
}
