import { connect, createServer } from "node:net";
import type { Socket } from "node:net";
import type { Tripwire } from "../tripwire.ts";
import { makeDoor } from "./doors.ts";
import type { Door } from "./doors.ts";
import { MessageCutter, stringsOf } from "./postgresMessages.ts";
import type { PostgresMessage } from "./postgresMessages.ts";
import { StatementReader } from "./statements.ts";
import type { StatementMoment } from "./statements.ts";

const headerBytes = 5;

/** One process's entrance to a PostgreSQL, at which each write can be held before and after. */
export function openPostgresDoor(
  target: { host: string; port: number },
  process: string,
  tripwire: Tripwire,
): Promise<Door> {
  const server = createServer((client) => {
    if (client.destroyed) return;
    const upstream = connect(target.port, target.host);
    client.on("error", () => upstream.destroy());
    client.on("close", () => upstream.destroy());
    upstream.on("error", () => client.destroy());
    upstream.on("close", () => client.destroy());
    client.setNoDelay(true);
    upstream.setNoDelay(true);
    const relay = new Relay(client, upstream, process, tripwire);
    const breakOff = (): void => {
      client.destroy();
      upstream.destroy();
    };
    relay.requests().catch(breakOff);
    relay.answers().catch(breakOff);
  });
  return makeDoor(server);
}

class Relay {
  readonly #client: Socket;
  readonly #upstream: Socket;
  readonly #process: string;
  readonly #tripwire: Tripwire;
  readonly #statements = new StatementReader();
  /** What each answer that is still to come belongs to, the startup's first. */
  readonly #asked: (StatementMoment | null)[] = [null];
  /** Of the extended query that is being sent. */
  #bound: StatementMoment | null = null;

  constructor(client: Socket, upstream: Socket, process: string, tripwire: Tripwire) {
    this.#client = client;
    this.#upstream = upstream;
    this.#process = process;
    this.#tripwire = tripwire;
  }

  async requests(): Promise<void> {
    const cutter = new MessageCutter("client");
    for await (const chunk of this.#client as AsyncIterable<Buffer>) {
      for (const message of cutter.push(chunk)) {
        const what = this.#read(message);
        if (what !== null) await this.#pass(what, "before");
        this.#upstream.write(message.bytes);
      }
    }
  }

  /** The answer to each query is passed on whole, once it may be. */
  async answers(): Promise<void> {
    const cutter = new MessageCutter("server");
    let answer: Buffer[] = [];
    let isDone = true;
    for await (const chunk of this.#upstream as AsyncIterable<Buffer>) {
      for (const { type, bytes } of cutter.push(chunk)) {
        const what = this.#asked[0] ?? null;
        if (what === null) this.#client.write(bytes);
        else answer.push(bytes);
        // An error, or a commit that the server has made a rollback, is nothing that was written.
        if (type === "E" || (type === "C" && bytes.includes("ROLLBACK"))) isDone = false;
        if (type !== "Z") continue;
        this.#asked.shift();
        if (what !== null) {
          if (isDone) await this.#pass(what, "after");
          this.#client.write(Buffer.concat(answer));
        }
        answer = [];
        isDone = true;
      }
    }
  }

  #read(message: PostgresMessage): StatementMoment | null {
    switch (message.type) {
      case "P": {
        const [name, sql] = stringsOf(message, headerBytes, 2) as [string, string];
        this.#statements.prepare(name, sql);
        return null;
      }
      case "B": {
        const [, name] = stringsOf(message, headerBytes, 2) as [string, string];
        this.#bound = this.#statements.runPrepared(name);
        return this.#bound;
      }
      case "Q": {
        const moment = this.#statements.runText(stringsOf(message, headerBytes, 1)[0] as string);
        this.#asked.push(moment);
        return moment;
      }
      case "S":
        this.#asked.push(this.#bound);
        this.#bound = null;
        return null;
      default:
        return null;
    }
  }

  async #pass(what: StatementMoment, side: "before" | "after"): Promise<void> {
    await this.#tripwire.pass({ process: this.#process, what, side });
    if (this.#client.destroyed) throw new Error("The client has gone.");
  }
}
