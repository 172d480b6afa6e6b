import type OpenAI from "openai";
import type { Turnkeeper } from "../src/client.ts";
import { percentile } from "./measure.ts";

/** Longer than any cancel takes; the simulator tells when the connection of such a call is closed. */
const input = "stream 3000 every 20 until it is cancelled";
const model = "gpt-bench";

/** A turn whose model is in the middle of its answer. */
export interface RunningTurn {
  id: string;
  /** Resolves when the turn has ended. */
  ended: Promise<unknown>;
}

export async function startByClient(turnkeeper: Turnkeeper): Promise<RunningTurn> {
  const turn = await turnkeeper.turns.start({ model, input });
  for await (const event of turn.events()) {
    if (event.type === "response.output_text.delta") break;
  }
  return { id: turn.id, ended: turn.result() };
}

export async function startOverHttp(openai: OpenAI): Promise<RunningTurn> {
  const stream = await openai.responses.create({ model, input, stream: true });
  const events = stream[Symbol.asyncIterator]();
  let id = "";
  for (;;) {
    const { value, done } = await events.next();
    if (done === true) throw new Error("The stream ended before the model said anything.");
    if (value.type === "response.created") ({ id } = value.response);
    if (value.type === "response.output_text.delta") break;
  }
  const readRest = async (): Promise<void> => {
    while ((await events.next()).done !== true);
  };
  return { id, ended: readRest() };
}

/**
 * The time from asking for the end of a turn until the provider sees its connection closed, for
 * `count` turns one after the other.
 *
 * @param closed resolves at the next such closing, with its time in milliseconds since 1970.
 */
export async function measureCancels(
  count: number,
  start: () => Promise<RunningTurn>,
  cancel: (turnId: string) => Promise<unknown>,
  closed: () => Promise<number>,
): Promise<{ p50: number; p95: number }> {
  const samples: number[] = [];
  for (let each = 0; each < count; each++) {
    const turn = await start();
    const closing = closed();
    const askedAt = performance.timeOrigin + performance.now();
    await cancel(turn.id);
    samples.push((await closing) - askedAt);
    await turn.ended;
  }
  return { p50: percentile(samples, 0.5), p95: percentile(samples, 0.95) };
}
