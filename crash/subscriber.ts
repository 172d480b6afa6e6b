import { setTimeout as delay } from "node:timers/promises";
import OpenAI, { APIError } from "openai";
import { isTerminalEvent } from "../src/turn/events.ts";
import type { NumberedEvent } from "../src/turn/events.ts";

const reconnectAfterMs = 100;
/** A stream without any event for this long is given up for another gateway. */
const defaultSilenceMs = 4_000;

export interface Asked {
  /** The agent. */
  model: string;
  input: string;
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
  readonly #asked: Asked;
  readonly #silenceMs: number;
  readonly #idempotencyKey = crypto.randomUUID();
  #current = new AbortController();

  constructor(urls: readonly string[], asked: Asked, silenceMs = defaultSilenceMs) {
    this.#urls = urls;
    this.#asked = asked;
    this.#silenceMs = silenceMs;
  }

  /** The gateway that it is connected to. */
  get url(): string {
    return this.#urls[(this.connections - 1) % this.#urls.length] as string;
  }

  /** Breaks its connection; it comes back. */
  disconnect(): void {
    this.#current.abort();
  }

  /** Resolves with the last event of the turn; rejects when `signal` aborts before. */
  async follow(signal: AbortSignal): Promise<NumberedEvent> {
    for (;;) {
      signal.throwIfAborted();
      try {
        const last = await this.#connect(signal);
        if (last !== null) return last;
      } catch (error) {
        this.lastError = error;
        const isRefusal = error instanceof APIError && Number(error.status) < 500;
        if (isRefusal) this.refusals.push(`${error.status} ${error.message}`);
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
      const headers = { "idempotency-key": this.#idempotencyKey };
      return client.responses.create({ ...this.#asked, stream: true }, { ...options, headers });
    }
    const starting_after = this.events.at(-1)?.sequence_number ?? 0;
    return client.responses.retrieve(this.turnId, { stream: true, starting_after }, options);
  }
}
