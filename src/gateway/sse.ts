import { once } from "node:events";
import type { OutgoingHttpHeaders } from "node:http";
import type { FastifyReply } from "fastify";
import { recordedType, wireJson } from "../turn/events.ts";
import type { RecordedEvent } from "../turn/events.ts";
import type { Connection } from "./connection.ts";

const keepAlive = ": keep-alive\n\n";

const headers = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache",
  // Asks nginx and those that follow it not to hold events back.
  "x-accel-buffering": "no",
};

function frame(event: RecordedEvent): string {
  return `event: ${recordedType(event.body)}\ndata: ${wireJson(event)}\n\n`;
}

/**
 * Writes events to a caller until they end, at the caller's speed. A stream that ends before its
 * turn, because the gateway closes or the database is away, is cut off rather than ended: a clean
 * end would look like the end of the answer. Every `keepAliveMs` a comment shows that it lives.
 */
export async function sendEvents(
  reply: FastifyReply,
  batches: AsyncIterable<RecordedEvent[]>,
  connection: Connection,
  keepAliveMs: number,
): Promise<void> {
  const { raw } = reply;
  const { signal } = connection;
  reply.hijack();
  raw.writeHead(reply.statusCode, { ...(reply.getHeaders() as OutgoingHttpHeaders), ...headers });
  raw.flushHeaders();
  const timer = setInterval(() => {
    if (!raw.writableNeedDrain) raw.write(keepAlive);
  }, keepAliveMs);
  try {
    for await (const batch of batches) {
      if (!raw.write(batch.map(frame).join(""))) await once(raw, "drain", { signal });
    }
    signal.throwIfAborted();
    raw.end();
  } catch (error) {
    if (!signal.aborted) reply.log.error({ err: error }, "event stream broke off");
    raw.destroy();
  } finally {
    clearInterval(timer);
  }
}
