import { Agent, fetch } from "undici";
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
    // Without the two limits undici never finds out that a shared HTTP/2 connection is dead, and every
    // retry would go to it; and a call's own socket is what a cancel closes [12].
    allowH2: false,
    connect: { timeout: settings.connectTimeoutMs },
  });
  // The same standard twice: Node's types describe the copy of undici that Node carries.
  return { fetch: fetch as unknown as typeof globalThis.fetch, dispatcher };
}

/** The request's last byte was held back for good; the cause says why. */
export class RequestWithheld extends Error {
  constructor(cause: unknown) {
    super("The request was not sent to its end.", { cause });
  }
}

/** `body` without its last byte until `confirm` has resolved. */
async function* holdLastByte(
  body: AsyncIterable<Uint8Array>,
  confirm: () => Promise<void>,
): AsyncGenerator<Uint8Array> {
  let held: Uint8Array | undefined;
  for await (const chunk of body) {
    if (held !== undefined) yield held;
    held = chunk;
  }
  if (held === undefined) return;
  // undici writes a chunk before it asks for the next one.
  yield held.subarray(0, -1);
  try {
    await confirm();
  } catch (error) {
    throw new RequestWithheld(error);
  }
  yield held.subarray(-1);
}

/**
 * A dispatcher for requests whose last byte leaves when `confirm` resolves, which is called when all
 * the others have been written. When it rejects, the server never has a whole request, and the request
 * fails with {@link RequestWithheld}, somewhere in the error's causes.
 */
export function holdingBack(dispatcher: Dispatcher, confirm: () => Promise<void>): Dispatcher {
  return dispatcher.compose((dispatch) => (options, handler) => {
    // What `fetch` gives, with its length among the headers; undici's types leave it out.
    const body = options.body as unknown as AsyncIterable<Uint8Array> | null;
    // After a redirect there may be none.
    const held = body === null ? null : holdLastByte(body, confirm);
    return dispatch({ ...options, body: held as never }, handler);
  });
}
