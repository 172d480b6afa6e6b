import type { EventSourceMessage } from "eventsource-parser";
import { APIError } from "openai";
import { isTerminalEvent } from "../turn/events.ts";
import { StepFailure, failure } from "../turn/failures.ts";
import { readMessages } from "./eventStream.ts";
import { classifyFailure, classifyProviderError } from "./failures.ts";
import type { ProviderError } from "./failures.ts";
import type { SilenceWatch } from "./silence.ts";
import { eventsOfResponse, isWholeResponse } from "./wholeResponse.ts";

/** A stream event as the provider sent it; types that are not known are passed on. */
export type UpstreamEvent = { type: string; [field: string]: unknown };

/** After the terminal event the end of the body is left, and often an end mark; read, it frees the connection. */
const drainTimeoutMs = 1_000;

function isEvent(value: unknown): value is UpstreamEvent {
  return (
    typeof value === "object" &&
    value !== null &&
    typeof (value as { type?: unknown }).type === "string"
  );
}

/** Throws what an `error` event, or a terminal event without a usable response, stands for. */
function refuseBroken(event: UpstreamEvent, headers: Headers): void {
  if (event.type === "error") {
    throw new StepFailure(classifyProviderError({ ...(event as ProviderError), headers }));
  }
  if (event.type !== "response.completed" && event.type !== "response.incomplete") return;
  if (!isWholeResponse(event["response"])) {
    const message = `The provider's ${event.type} event carries no response with output.`;
    throw new StepFailure(failure("malformed_answer", message));
  }
}

/** The response that a lifecycle event carries, as far as it is read here. */
function responseOf(event: UpstreamEvent) {
  return event["response"] as { status?: unknown; error?: ProviderError | null } | null | undefined;
}

function throwIfFailed(event: UpstreamEvent, headers: Headers): void {
  const isCancelled = responseOf(event)?.status === "cancelled";
  if (isCancelled) throw new StepFailure(failure("response_cancelled"));
  if (event.type !== "response.failed") return;
  const error = { ...errorOf(event), headers };
  throw new StepFailure(classifyProviderError(error, "response_failed"));
}

function errorOf(event: UpstreamEvent): ProviderError | null | undefined {
  return responseOf(event)?.error ?? (event["error"] as ProviderError | null | undefined);
}

/** Servers of chat completions end their streams with it, and with them many of the Responses API. */
const endMark = "[DONE]";

/** What an event carries; `undefined` for what is no JSON. */
function parse({ data }: EventSourceMessage): unknown {
  try {
    return JSON.parse(data);
  } catch {
    return undefined;
  }
}

/** Throws what an event named `error` stands for, or one that carries an error beside its type. */
function refuseError({ event }: EventSourceMessage, value: unknown, headers: Headers): void {
  const error = (value as { error?: object } | null | undefined)?.error;
  if (event !== "error" && !error) return;
  const cause = new APIError(undefined, error ?? (value as object), undefined, headers);
  throw new StepFailure(classifyFailure(cause), { cause });
}

/** Azure says why a response failed in an `error` event behind `response.failed`. */
async function throwWhatFollows(
  rest: Promise<IteratorResult<EventSourceMessage>>,
  headers: Headers,
): Promise<void> {
  const next = await rest.catch(() => null);
  if (next?.done !== false) return;
  const value = parse(next.value);
  refuseError(next.value, value, headers);
  if (isEvent(value)) refuseBroken(value, headers);
}

async function readToEnd(messages: AsyncIterator<EventSourceMessage>): Promise<void> {
  while ((await messages.next()).done !== true);
}

/** vLLM names every end `response.completed`, and only the response's status says which it is. */
function withItsStatus(event: UpstreamEvent): UpstreamEvent {
  if (event.type !== "response.completed") return event;
  const type = `response.${String(responseOf(event)?.status)}`;
  return isTerminalEvent(type) ? { ...event, type } : event;
}

interface Sighting {
  /** Anything with a `type`. */
  events: number;
  /** Anything else. */
  others: number;
}

function mediaTypeOf(headers: Headers): string | undefined {
  return headers.get("content-type")?.split(";")[0]?.trim().toLowerCase();
}

function missingEnd(seen: Sighting, headers: Headers): StepFailure {
  const isEmptyStream = seen.others === 0 && mediaTypeOf(headers) === "text/event-stream";
  const isCut = seen.events > 0 || isEmptyStream;
  return new StepFailure(failure(isCut ? "stream_truncated" : "malformed_answer"));
}

async function nextMessage(
  iterator: AsyncIterator<EventSourceMessage>,
  watch: SilenceWatch,
  idleTimeoutMs: number,
): Promise<EventSourceMessage | null> {
  watch.arm(idleTimeoutMs, "event");
  try {
    const next = await iterator.next();
    return next.done === true || next.value.data === endMark ? null : next.value;
  } finally {
    watch.disarm();
  }
}

async function* readEvents(
  response: Response,
  watch: SilenceWatch,
  idleTimeoutMs: number,
): AsyncGenerator<UpstreamEvent> {
  const { headers } = response;
  const iterator = readMessages(response);
  const seen: Sighting = { events: 0, others: 0 };
  for (;;) {
    const message = await nextMessage(iterator, watch, idleTimeoutMs);
    if (message === null) throw missingEnd(seen, headers);
    const value = parse(message);
    // An event that was cut by the end of the body is no JSON.
    if (value === undefined) throw missingEnd(seen, headers);
    refuseError(message, value, headers);
    if (!isEvent(value)) {
      seen.others += 1;
      continue;
    }
    seen.events += 1;
    const event = withItsStatus(value);
    refuseBroken(event, headers);
    if (!isTerminalEvent(event.type)) {
      yield event;
      continue;
    }
    const rest = iterator.next();
    watch.endAfter(
      rest.then(() => readToEnd(iterator)),
      drainTimeoutMs,
    );
    yield event;
    const isUnexplained = event.type === "response.failed" && !errorOf(event);
    if (isUnexplained) await throwWhatFollows(rest, headers);
    return throwIfFailed(event, headers);
  }
}

/** The answer of a server that ignores `stream: true`, as the events that it stands for. */
async function* readWhole(
  response: Response,
  watch: SilenceWatch,
  idleTimeoutMs: number,
): AsyncGenerator<UpstreamEvent> {
  watch.arm(idleTimeoutMs, "body");
  const body: unknown = JSON.parse(await response.text());
  watch.disarm();
  yield* readEnded(body, response.headers);
}

/**
 * The events of a response that has ended, as it was answered at once or retrieved.
 *
 * @throws StepFailure, behind its events where it failed, for everything that is not a whole answer.
 */
export function* readEnded(
  body: unknown,
  headers: Headers = new Headers(),
): Generator<UpstreamEvent> {
  const { error, status } = (body ?? {}) as { error?: ProviderError | null; status?: unknown };
  if (!isWholeResponse(body) || !isTerminalEvent(`response.${String(status)}`)) {
    if (error) throw new StepFailure(classifyProviderError({ ...error, headers }));
    const isCancelled = status === "cancelled";
    throw new StepFailure(failure(isCancelled ? "response_cancelled" : "malformed_answer"));
  }
  for (const event of eventsOfResponse(body)) {
    yield event;
    throwIfFailed(event, headers);
  }
}

/** Reads an answer to its terminal event; what it throws is documented at `ModelEndpoint.stream`. */
export function readAnswer(
  response: Response,
  watch: SilenceWatch,
  idleTimeoutMs: number,
): AsyncGenerator<UpstreamEvent> {
  const isWhole = mediaTypeOf(response.headers) === "application/json";
  if (isWhole) return readWhole(response, watch, idleTimeoutMs);
  return readEvents(response, watch, idleTimeoutMs);
}
