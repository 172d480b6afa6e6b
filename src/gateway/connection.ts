import type { FastifyReply } from "fastify";
import { Refusal } from "../turn/failures.ts";
import type { Followers } from "./followers.ts";

/** What every route that streams or waits needs. */
export interface StreamParts {
  /** Aborts when the gateway begins to close. */
  closing: AbortSignal;
  keepAliveMs: number;
  followers: Followers;
}

/** A caller's connection, as long as its answer is not complete. */
export interface Connection {
  /** Aborts when the caller has gone or the gateway closes. */
  signal: AbortSignal;
  isClientGone(): boolean;
}

/** Watches the connection that an answer will be written to. */
export function watchConnection(reply: FastifyReply, closing: AbortSignal): Connection {
  const gone = new AbortController();
  const { raw } = reply;
  const check = (): void => {
    if (!raw.writableFinished) gone.abort();
  };
  if (raw.destroyed || raw.socket?.destroyed === true) check();
  else raw.once("close", check);
  return {
    signal: AbortSignal.any([gone.signal, closing]),
    isClientGone: () => gone.signal.aborted,
  };
}

/** What callers are told that wait here while the gateway closes. */
export function closingRefusal(): Refusal {
  return new Refusal(
    "gateway_closing",
    "This gateway is shutting down; what was started goes on. Send the request again.",
  );
}
