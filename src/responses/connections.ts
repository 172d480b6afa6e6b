import { Agent, fetch } from "undici";

/** Below the idle time after which OpenAI's edge and common proxies close a connection. */
const keepAliveMs = 30_000;

/**
 * undici's own `fetch` and a pool of kept-alive connections for it, without the limits of 300 s that
 * Node sets for the headers and between two chunks of a body: a model may think for longer, and the
 * idle timer is ours.
 */
export function openConnections(settings: { connectTimeoutMs: number }): {
  fetch: typeof globalThis.fetch;
  dispatcher: Agent;
} {
  const dispatcher = new Agent({
    headersTimeout: 0,
    bodyTimeout: 0,
    keepAliveTimeout: keepAliveMs,
    connect: { timeout: settings.connectTimeoutMs },
  });
  // The same standard twice: Node's types describe the copy of undici that Node carries.
  return { fetch: fetch as unknown as typeof globalThis.fetch, dispatcher };
}
