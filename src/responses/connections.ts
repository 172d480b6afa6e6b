import { Agent, DecoratorHandler, fetch } from "undici";
import type { Dispatcher } from "undici";

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

/** The request did not leave before its `sendBy`: nothing was sent, and the connection stays open. */
export class RequestLate extends Error {
  constructor() {
    super("The request could not leave in time.");
  }
}

/** undici asks at the last moment before it writes, when there is a connection. */
class SendBy extends DecoratorHandler {
  readonly #inner: Dispatcher.DispatchHandler;
  readonly #sendBy: number;

  constructor(inner: Dispatcher.DispatchHandler, sendBy: number) {
    super(inner);
    this.#inner = inner;
    this.#sendBy = sendBy;
  }

  onRequestStart(controller: Dispatcher.DispatchController, context: unknown): void {
    if (Date.now() > this.#sendBy) throw new RequestLate();
    this.#inner.onRequestStart?.(controller, context);
  }
}

/**
 * The dispatcher for a request that must not leave after `sendBy`, as `Date.now()` gives it. It fails
 * with {@link RequestLate} then, somewhere in the error's causes.
 */
export function sendingBy(dispatcher: Dispatcher, sendBy: number): Dispatcher {
  return dispatcher.compose(
    (dispatch) => (options, handler) => dispatch(options, new SendBy(handler, sendBy)),
  );
}
