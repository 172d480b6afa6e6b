/** A message of PostgreSQL's protocol 3.0, with its length (PostgreSQL manual, chapter 55). */
export interface PostgresMessage {
  /** One letter; empty for the startup message, which has no type. */
  type: string;
  bytes: Buffer;
}

const lengthBytes = 4;

/** Cuts what a connection carries in one direction into messages. */
export class MessageCutter {
  #rest: Buffer = Buffer.alloc(0);
  #isStarting: boolean;

  /** @param from a client's first message has no type. */
  constructor(from: "client" | "server") {
    this.#isStarting = from === "client";
  }

  /** Returns the messages that are complete now. */
  push(chunk: Buffer): PostgresMessage[] {
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const messages: PostgresMessage[] = [];
    for (;;) {
      const typeBytes = this.#isStarting ? 0 : 1;
      if (this.#rest.length < typeBytes + lengthBytes) return messages;
      const end = typeBytes + this.#rest.readInt32BE(typeBytes);
      if (this.#rest.length < end) return messages;
      const bytes = this.#rest.subarray(0, end);
      messages.push({
        type: this.#isStarting ? "" : String.fromCharCode(bytes[0] as number),
        bytes,
      });
      this.#rest = this.#rest.subarray(end);
      this.#isStarting = false;
    }
  }
}

/** The zero-terminated strings from `start` on: as many as are asked for. */
export function stringsOf({ bytes }: PostgresMessage, start: number, count: number): string[] {
  const strings: string[] = [];
  let at = start;
  while (strings.length < count) {
    const end = bytes.indexOf(0, at);
    strings.push(bytes.toString("utf8", at, end));
    at = end + 1;
  }
  return strings;
}
