import { BlockList, isIP } from "node:net";
import type { FastifyRequest } from "fastify";
import { LRUCache } from "lru-cache";
import type { Turns } from "../turns.ts";
import { InvalidConfig } from "../config.ts";
import { findApiKey, everHadApiKeys } from "../store/apiKeys.ts";
import type { ApiKey } from "../store/apiKeys.ts";
import type { Database } from "../store/database.ts";
import { Refusal } from "../turn/failures.ts";

/** Who sent a request. */
export interface Caller {
  /** The only one that the request sees [14]. */
  project: string;
  /** `null` where no key is needed. */
  apiKeyId: string | null;
  turns: Turns;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Set before every route of the API. */
    caller: Caller;
  }
}

/** A revoked key is good for this long; a first key that was made is demanded after this long. */
const keyCacheMs = 10_000;
const maxCachedKeys = 10_000;

/** The project of requests without a key. */
const keylessProject = "default";

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8);
loopback.addAddress("::1", "ipv6");

/** Whether a host, as it stands in a URL, can only be this machine. */
export function isLoopbackHost(host: string): boolean {
  const bare = host.replace(/^\[(.*)\]$/, "$1").toLowerCase();
  if (bare === "localhost") return true;
  const family = isIP(bare);
  return family !== 0 && loopback.check(bare, family === 6 ? "ipv6" : "ipv4");
}

/**
 * Closed unless opened: before the first key, only this machine may be listened on.
 *
 * @throws InvalidConfig saying how to make a key.
 */
export async function checkMayListen(database: Database, host: string): Promise<void> {
  if (isLoopbackHost(host) || (await everHadApiKeys(database))) return;
  throw new InvalidConfig([
    `TURNKEEPER_HOST: ${host} can be reached from other machines, and there is no API key yet. Make one with 'turnkeeper key create', or listen on 127.0.0.1.`,
  ]);
}

function hostOf(url: string): string {
  return URL.canParse(url) ? new URL(url).hostname : "";
}

/** What proxies add (RFC 7239, and its predecessors). */
const proxyHeaders = ["forwarded", "x-forwarded-for", "x-forwarded-host"];

/**
 * A page in a browser on this machine may reach the port without a key, by a name of its own that
 * points here (DNS rebinding) or across origins, and anybody by a proxy on this machine; none of them
 * is let in.
 */
function checkIsLocal({ headers }: FastifyRequest): void {
  const { host, origin } = headers;
  const names = [`http://${host}`, ...(origin === undefined ? [] : [origin])];
  const proxied = proxyHeaders.find((name) => headers[name] !== undefined);
  if (proxied === undefined && names.every((name) => isLoopbackHost(hostOf(name)))) return;
  const reason = proxied === undefined ? "" : ` This request came through a proxy ('${proxied}').`;
  throw new Refusal(
    "origin_not_allowed",
    `Without an API key, Turnkeeper answers only to localhost.${reason} Make a key with 'turnkeeper key create'.`,
  );
}

/** Finds the key of a request, and whether it needs one. */
export class Authenticator {
  readonly #database: Database;
  readonly #isOpenToOthers: boolean;
  readonly #keys: LRUCache<string, ApiKey>;
  readonly #needed: LRUCache<"isNeeded", boolean>;

  constructor(database: Database, host: string) {
    this.#database = database;
    this.#isOpenToOthers = !isLoopbackHost(host);
    this.#keys = new LRUCache({
      max: maxCachedKeys,
      ttl: keyCacheMs,
      fetchMethod: async (secret) => (await findApiKey(database, secret)) ?? undefined,
    });
    this.#needed = new LRUCache({
      max: 1,
      ttl: keyCacheMs,
      fetchMethod: () => everHadApiKeys(this.#database),
    });
  }

  /** @throws Refusal `invalid_api_key` or `origin_not_allowed`. */
  async authenticate(
    request: FastifyRequest,
  ): Promise<{ project: string; apiKeyId: string | null }> {
    const isNeeded = this.#isOpenToOthers || (await this.#needed.fetch("isNeeded")) === true;
    if (!isNeeded) {
      checkIsLocal(request);
      return { project: keylessProject, apiKeyId: null };
    }
    const secret = /^Bearer +(\S+) *$/i.exec(request.headers.authorization ?? "")?.[1];
    const key = secret === undefined ? undefined : await this.#keys.fetch(secret);
    if (key !== undefined) return { project: key.project, apiKeyId: key.id };
    throw new Refusal(
      "invalid_api_key",
      secret === undefined
        ? "An API key is needed: send it as 'Authorization: Bearer KEY'. 'turnkeeper key create' makes one."
        : "The API key is not valid, or was revoked. 'turnkeeper key create' makes a new one.",
    );
  }
}
