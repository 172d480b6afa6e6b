import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { Tripwire } from "./tripwire.ts";

/** The world outside: whatever the tools do to it is counted, by idempotency key. */
export interface Effects {
  url: string;
  /** How often each call has had its effect, by `TOOL KEY`. */
  counts: ReadonlyMap<string, number>;
  reset(): void;
  close(): Promise<void>;
}

/** Path of a request: `/PROCESS/TOOL/KEY`. */
export async function startEffects(tripwire: Tripwire): Promise<Effects> {
  const counts = new Map<string, number>();
  const server = createServer((request, response) => {
    const path = (request.url ?? "").split("/").map(decodeURIComponent);
    const [, process = "", tool = "", key = ""] = path;
    const serve = async (): Promise<void> => {
      // A request that has come in has its effect, even if nobody waits for the answer any more.
      await tripwire.pass({ process, what: `start of ${tool}`, side: "before" }).catch(() => {});
      counts.set(`${tool} ${key}`, (counts.get(`${tool} ${key}`) ?? 0) + 1);
      await tripwire.pass({ process, what: `end of ${tool}`, side: "before" });
      response.end(`done by ${tool}`);
    };
    serve().catch(() => response.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    counts,
    reset: () => counts.clear(),
    async close() {
      const closed = once(server, "close");
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}
