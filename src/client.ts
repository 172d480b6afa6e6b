import { openPostgres } from "./store/postgres.ts";
import { createEngine, findSearchAttributes } from "./engine.ts";
import { EventHub } from "./events/hub.ts";
import { connectLazily } from "./temporal.ts";
import { defaultTaskQueue } from "./turn/engineNames.ts";
import { checkId } from "./turn/request.ts";
import { Turns } from "./turns.ts";
import type { ClientParts } from "./clientParts.ts";

export interface ConnectOptions {
  /** `postgres://…`: the database that the workers use. */
  databaseUrl: string;
  /** Default: Temporal's own environment variables, then `localhost:7233`. */
  temporalAddress?: string;
  temporalNamespace?: string;
  /** Default `turnkeeper`. */
  taskQueue?: string;
  /** Default `default`. */
  project?: string;
}

/** Turnkeeper, as a backend service uses it: Temporal and the database, no HTTP between. */
export class Turnkeeper {
  readonly turns: Turns;
  readonly #parts: ClientParts;
  readonly #close: () => Promise<void>;

  constructor(parts: ClientParts, project: string, close: () => Promise<void> = async () => {}) {
    this.#parts = parts;
    this.turns = new Turns(parts, project);
    this.#close = close;
  }

  /**
   * Connects to the database and to Temporal, both of which the workers use too.
   *
   * @throws StoreUnavailable or an error of Temporal's client when one is out of reach; nothing stays open.
   */
  static async connect(options: ConnectOptions): Promise<Turnkeeper> {
    const { connection, client } = connectLazily({
      address: options.temporalAddress,
      namespace: options.temporalNamespace,
    });
    const database = openPostgres({ url: options.databaseUrl });
    const disconnect = async () => {
      await connection.close();
      await database.close();
    };
    try {
      const engine = createEngine({
        client,
        taskQueue: options.taskQueue ?? defaultTaskQueue,
        eagerStart: false,
        searchAttributes: await findSearchAttributes(client),
      });
      const hub = await EventHub.open(database);
      return new Turnkeeper({ database, hub, engine }, options.project ?? "default", async () => {
        await hub.close();
        await disconnect();
      });
    } catch (error) {
      await disconnect();
      throw error;
    }
  }

  /** The turns of another project, over the same connections. */
  project(id: string): Turns {
    return new Turns(this.#parts, checkId(id, "project"));
  }

  async close(): Promise<void> {
    await this.#close();
  }
}
