import type { Dispatcher } from "undici-types";

/** Below the idle time after which OpenAI's edge and common proxies close a connection. */
const keepAliveMs = 30_000;

/** The Agent class of the undici inside Node; it is in memory as soon as `fetch` has been touched. */
function builtInAgent(): new (options: object) => Dispatcher {
  void globalThis.fetch;
  void fetch("data:,").catch(() => undefined);
  const dispatcher = (globalThis as Record<symbol, unknown>)[
    Symbol.for("undici.globalDispatcher.1")
  ] as object;
  return dispatcher.constructor as new (options: object) => Dispatcher;
}

/**
 * A pool of kept-alive connections for `fetch`, without the limits of 300 s that Node sets for the
 * headers and between two chunks of a body: a model may think for longer, and the idle timer is ours.
 */
export function openConnections(settings: { connectTimeoutMs: number }): Dispatcher {
  const Agent = builtInAgent();
  return new Agent({
    headersTimeout: 0,
    bodyTimeout: 0,
    keepAliveTimeout: keepAliveMs,
    connect: { timeout: settings.connectTimeoutMs },
  });
}
