// The endpoints under /v1/responses/{id}: what was stored, and streams that are resumed.
import type { ResponseInputItem } from "openai/resources/responses/responses";
import { sendJson, stream } from "./exchange.ts";
import type { Exchange } from "./exchange.ts";
import { apiError } from "./fault.ts";
import type { ResponseMemory, StoredResponse } from "./memory.ts";
import type { Run } from "./run.ts";

export interface Stored {
  memory: ResponseMemory;
  isTooOld(run: Run): boolean;
}

const DEFAULT_PAGE_ITEMS = 20;
const MAX_PAGE_ITEMS = 100;

/** Answers every request; true if the answer is a stream that stays open. */
export function answerStored(exchange: Exchange, url: URL, stored: Stored): boolean {
  const { method } = exchange.incoming;
  const [, id, action] =
    /^\/v1\/responses\/([^/]+)(?:\/(cancel|input_items))?$/.exec(url.pathname) ?? [];
  if (id === undefined) {
    const message = `Invalid URL (${method} ${url.pathname})`;
    return refuse(exchange, 404, message);
  }
  const found = stored.memory.get(id);
  if (!found) return refuse(exchange, 404, `Response with id '${id}' not found.`);
  const what = `${method} ${action ?? ""}`;
  if (what === "GET " && url.searchParams.get("stream") === "true") {
    return resume(exchange, found.run, url, stored);
  }
  if (what === "GET ") return reply(exchange, found.run.response);
  if (what === "GET input_items") return reply(exchange, listInput(found, url));
  if (what === "POST cancel") return cancel(exchange, found.run);
  if (what === "DELETE ") {
    found.run.cancel();
    stored.memory.delete(id);
    return reply(exchange, { id, object: "response", deleted: true });
  }
  return refuse(exchange, 405, `Not allowed method or path (${method} ${url.pathname})`);
}

function reply(exchange: Exchange, body: unknown): false {
  sendJson(exchange, 200, body);
  return false;
}

function refuse(exchange: Exchange, status: number, message: string): false {
  sendJson(exchange, status, apiError(message));
  return false;
}

function resume(exchange: Exchange, run: Run, url: URL, { isTooOld }: Stored): boolean {
  if (!run.keepFrames) {
    const message =
      "This response cannot be streamed because it was not created with background=true and stream=true.";
    return refuse(exchange, 400, message);
  }
  if (isTooOld(run)) {
    const message =
      "This response can no longer be streamed because it is more than 5 minutes old.";
    return refuse(exchange, 400, message);
  }
  const after = url.searchParams.get("starting_after");
  const stop = stream(exchange, run, after === null ? -1 : Number(after));
  exchange.outgoing.once("close", stop);
  return true;
}

/** Cancelling what is already over returns it as it is. */
function cancel(exchange: Exchange, run: Run): false {
  if (!run.response.background) {
    return refuse(exchange, 400, "Cannot cancel a synchronous response.");
  }
  run.cancel();
  return reply(exchange, run.response);
}

function listInput({ run, input }: StoredResponse, url: URL) {
  const query = url.searchParams;
  const items = input.map((item, index) => withId(item, run.response.id, index));
  if (query.get("order") !== "asc") items.reverse();
  const after = items.findIndex((item) => item.id === query.get("after")) + 1;
  const limit = Math.min(Number(query.get("limit") ?? DEFAULT_PAGE_ITEMS), MAX_PAGE_ITEMS);
  const data = items.slice(after, after + limit);
  return {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: after + limit < items.length,
  };
}

/** Items that came without an id get one that stays the same. */
function withId(item: ResponseInputItem, responseId: string, index: number) {
  const prefix = item.type === "message" || item.type === undefined ? "msg" : "item";
  const madeUp = `${prefix}_${responseId.replace(/^resp_/, "")}${index.toString().padStart(4, "0")}`;
  return { ...item, id: ("id" in item && item.id) || madeUp };
}
