import { defaultEventWriterSettings, EventWriter } from "../../src/events/writer.ts";
import type { EventWriterSettings, OnCommitted, StepWriter } from "../../src/events/writer.ts";
import type { Database, Queryable } from "../../src/store/database.ts";
import type { Fence } from "../../src/store/fence.ts";
import type { TurnEvent } from "../../src/turn/events.ts";
import type { Turn } from "../../src/turn/turn.ts";
import { recordedEvents } from "./storeTurns.ts";

export function delta(text: string, index = 0): TurnEvent {
  const place = { item_id: "msg_1", output_index: index, content_index: 0 };
  return { type: "response.output_text.delta", ...place, delta: text };
}

export async function deltasOf(database: Database, turn: Turn): Promise<string[]> {
  const events = await recordedEvents(database, turn);
  return events
    .filter((event) => event.type === "response.output_text.delta")
    .map((event) => event["delta"] as string);
}

export interface Told {
  fenced: number;
  failed: unknown[];
  cancelRequested: number;
}

export function open(writer: EventWriter, by: Fence): { step: StepWriter; told: Told } {
  const told: Told = { fenced: 0, failed: [], cancelRequested: 0 };
  const step = writer.open(by, {
    fenced: () => (told.fenced += 1),
    failed: (error) => told.failed.push(error),
    cancelRequested: () => (told.cancelRequested += 1),
  });
  return { step, told };
}

export function newWriter(
  database: Queryable,
  settings: Partial<EventWriterSettings> = {},
  onCommitted: OnCommitted = () => {},
): EventWriter {
  return new EventWriter(database, onCommitted, { ...defaultEventWriterSettings, ...settings });
}

/** Of somebody who waits for as long as it takes. */
export const patient = new AbortController().signal;
