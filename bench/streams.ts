import type OpenAI from "openai";
import { percentile } from "./measure.ts";

/** The start of the streams, all at once, is no steady state: its deltas are not counted. */
const rampShare = 0.2;

export interface StreamFigures {
  p50Ms: number;
  p95Ms: number;
  deltas: number;
}

/**
 * The delay of each delta from the model to the subscriber, over `streams` streams at a time of
 * `deltas` deltas each, `everyMs` apart. Merged deltas count one by one.
 */
export async function measureStreams(
  openai: OpenAI,
  streams: number,
  deltas: number,
  everyMs: number,
): Promise<StreamFigures> {
  const input = `stream ${deltas} every ${everyMs}`;
  const delays: number[] = [];
  const follow = async (): Promise<void> => {
    const stream = await openai.responses.create({ model: "gpt-bench", input, stream: true });
    let seen = 0;
    for await (const event of stream) {
      if (event.type !== "response.output_text.delta") continue;
      const now = performance.timeOrigin + performance.now();
      for (const stamp of event.delta.trim().split(" ")) {
        if (++seen > deltas * rampShare) delays.push(now - Number(stamp));
      }
    }
  };
  await Promise.all(Array.from({ length: streams }, follow));
  const [p50Ms, p95Ms] = [percentile(delays, 0.5), percentile(delays, 0.95)];
  return { p50Ms, p95Ms, deltas: streams * deltas };
}

/** Megabytes that a process grows by for each of `streams` streams that are open at a time. */
export async function measureOpenStreams(
  openai: OpenAI,
  residentMb: () => Promise<number>,
  streams: number,
): Promise<number> {
  const before = await residentMb();
  const input = "stream 20 every 250";
  const open = Array.from({ length: streams }, async () => {
    const stream = await openai.responses.create({ model: "gpt-bench", input, stream: true });
    const events = stream[Symbol.asyncIterator]();
    for (;;) {
      const next = await events.next();
      if (next.done || next.value.type === "response.output_text.delta") return events;
    }
  });
  const iterators = await Promise.all(open);
  const grownMb = (await residentMb()) - before;
  for (const events of iterators) await events.return?.();
  return grownMb / streams;
}
