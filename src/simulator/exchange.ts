// One HTTP request and its answer.
import type { IncomingMessage, ServerResponse } from "node:http";
import { newId } from "./response.ts";
import type { Run } from "./run.ts";

export interface Exchange {
  incoming: IncomingMessage;
  outgoing: ServerResponse;
  requestId: string;
  startedAtMs: number;
}

export function openExchange(incoming: IncomingMessage, outgoing: ServerResponse): Exchange {
  return { incoming, outgoing, requestId: newId("req"), startedAtMs: performance.now() };
}

/** Undefined if there is no body. Throws a RangeError past `maxBytes` and a SyntaxError. */
export async function readJson(incoming: IncomingMessage, maxBytes: number): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of incoming as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes <= maxBytes) chunks.push(chunk);
  }
  if (bytes > maxBytes)
    throw new RangeError(`The body has ${bytes} bytes; ${maxBytes} are allowed.`);
  return bytes === 0 ? undefined : JSON.parse(Buffer.concat(chunks).toString("utf8"));
}

export function sendJson(exchange: Exchange, status: number, body: unknown): void {
  send(exchange, status, JSON.stringify(body), { "content-type": "application/json" });
}

export function send(
  exchange: Exchange,
  status: number,
  body: string,
  headers: Record<string, string>,
): void {
  exchange.outgoing.writeHead(status, { ...commonHeaders(exchange), ...headers }).end(body);
}

/** Writes the run's frames as they come; the answer ends with them. Returns how to stop. */
export function stream(exchange: Exchange, run: Run, afterSequence = -1): () => void {
  const { outgoing } = exchange;
  const contentType = "text/event-stream; charset=utf-8";
  outgoing.writeHead(200, { ...commonHeaders(exchange), "content-type": contentType });
  outgoing.flushHeaders();
  const listener = {
    frame: ({ text }: { text: string }) => void outgoing.write(text),
    end: () => void outgoing.end(),
  };
  return run.listen(listener, afterSequence);
}

/** What has been written still arrives; the body stays without its end. */
export function breakOff(exchange: Exchange): void {
  exchange.outgoing.socket?.destroySoon();
}

/** Those of the real API, whose rate limits are never near here. */
function commonHeaders({ requestId, startedAtMs }: Exchange): Record<string, string> {
  return {
    "x-request-id": requestId,
    "openai-processing-ms": String(Math.ceil(performance.now() - startedAtMs)),
    "openai-version": "2020-10-01",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-limit-tokens": "10000000",
    "x-ratelimit-remaining-tokens": "9999999",
    "x-ratelimit-reset-tokens": "0s",
  };
}
