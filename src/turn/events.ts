import type { ResponseObject } from "./response.ts";

/**
 * One element of a turn's stream before it has its number: a Responses API stream event without
 * `sequence_number`, which the log gives it when it is stored.
 */
export interface TurnEvent {
  type: string;
  [field: string]: unknown;
}

/** An event on record. `body` is its JSON without the number, as it lies in the log. */
export interface RecordedEvent {
  sequenceNumber: number;
  body: string;
}

/** An event as clients see it. */
export interface NumberedEvent extends TurnEvent {
  sequence_number: number;
}

/** The JSON that clients see; splices the number in, so that bodies need not be parsed on the way. */
export function wireJson(event: RecordedEvent): string {
  return `{"sequence_number":${event.sequenceNumber},${event.body.slice(1)}`;
}

export function parseEvent(event: RecordedEvent): NumberedEvent {
  return JSON.parse(wireJson(event)) as NumberedEvent;
}

/** An output item at its place in the response. */
export interface OutputEntry {
  index: number;
  item: Record<string, unknown>;
}

/** The types after which a stream has nothing more to say. */
const terminalTypes: ReadonlySet<string> = new Set([
  "response.completed",
  "response.failed",
  "response.incomplete",
]);

export function isTerminalEvent(type: string): boolean {
  return terminalTypes.has(type);
}

/** Reads the type off a recorded body, which always begins with it. */
export function recordedType(body: string): string {
  const prefix = '{"type":"';
  if (!body.startsWith(prefix)) throw new Error("A recorded event does not begin with its type.");
  return body.slice(prefix.length, body.indexOf('"', prefix.length));
}

/** The JSON that is recorded: `type` first, so that {@link recordedType} need not parse. */
export function eventBody(event: TurnEvent): string {
  const { type, ...fields } = event;
  // Spliced, because an object puts keys that look like numbers before all others.
  const rest = JSON.stringify(fields).slice(1);
  return `{"type":${JSON.stringify(type)}${rest === "}" ? "" : ","}${rest}`;
}

/**
 * The event by which a response enters its status. The API has no `response.cancelled`: a
 * cancelled turn ends as `response.incomplete` whose response has status `cancelled`.
 */
export function lifecycleEvent(response: ResponseObject): TurnEvent {
  const type = response.status === "cancelled" ? "incomplete" : response.status;
  return { type: `response.${type}`, response };
}
