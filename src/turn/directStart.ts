import type { ResponseRequest } from "./request.ts";

/**
 * The argument with which any language's Temporal SDK starts a turn: plain JSON, the fields of
 * `POST /v1/responses` plus these. The workflow id becomes the turn id.
 */
export interface DirectStart {
  /** Default `default`. */
  project?: string;
  /** Default `queue`: nobody waits for an error. */
  when_busy?: "reject" | "queue" | "interrupt";
  /** At most `maxDirectInputBytes` bytes of JSON. */
  request: ResponseRequest;
}

/** The argument lies in Temporal's history, so it has to stay small; larger input goes over HTTP. */
export const maxDirectInputBytes = 256 * 1024;
