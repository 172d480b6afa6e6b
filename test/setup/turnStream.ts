import { accumulateResponse } from "openai/lib/responses/ResponseAccumulator";
import type { Response } from "openai/resources/responses/responses";
import { expect } from "vitest";
import type { TurnHandle, TurnResult } from "../../src/turnHandle.ts";
import type { NumberedEvent } from "../../src/turn/events.ts";
import { itemsShownOtherwise } from "./shownText.ts";

export interface EndedTurn extends TurnResult {
  events: NumberedEvent[];
  /** What a client's SDK makes of the events before the last one. */
  accumulated: Response;
}

type OutputItem = Record<string, unknown> & { id: string; type: string; status?: string };

/**
 * Waits for the end of a turn and checks what holds of every stream [6]: numbers without gaps, one
 * response id, items at contiguous places with one id and type each, every item closed with the text that
 * its deltas make, one terminal event, and a final output that is what the events make, abandoned items
 * left out.
 */
export async function ended(turn: TurnHandle): Promise<EndedTurn> {
  const events = await Array.fromAsync(turn.events());
  const result = await turn.result();
  expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, at) => at));
  const last = events.at(-1) as NumberedEvent & { response: Response };
  const lastType = result.status === "cancelled" ? "incomplete" : result.status;
  expect(last.type).toBe(`response.${lastType}`);
  expect(last.response).toEqual(result.response);
  expectWholeItems(events);
  expect(itemsShownOtherwise(events)).toEqual([]);
  const accumulated = accumulate(events.slice(0, -1));
  const output = accumulated.output as unknown as OutputItem[];
  const shown = result.response.output as OutputItem[];
  expect(output.filter((item) => shown.some(({ id }) => id === item.id))).toEqual(shown);
  const leftOut = output.filter((item) => !shown.some(({ id }) => id === item.id));
  expect(leftOut.map((item) => item.status)).toEqual(leftOut.map(() => "incomplete"));
  return { ...result, events, accumulated };
}

export function accumulate(events: readonly NumberedEvent[]): Response {
  let seen: Response | undefined;
  for (const event of events) seen = accumulateResponse(event as never, seen);
  return seen as Response;
}

function expectWholeItems(events: readonly NumberedEvent[]): void {
  const of = (type: string) =>
    events
      .filter((event) => event.type === type)
      .map((event) => {
        const item = event["item"] as OutputItem;
        return { place: event["output_index"] as number, id: item.id, type: item.type };
      });
  const added = of("response.output_item.added");
  const byPlace = (left: { place: number }, right: { place: number }) => left.place - right.place;
  expect(added.map(({ place }) => place)).toEqual(added.map((_, at) => at));
  expect(of("response.output_item.done").sort(byPlace)).toEqual(added);
  expect(new Set(added.map(({ id }) => id)).size).toBe(added.length);
}
