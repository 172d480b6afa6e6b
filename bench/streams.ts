import type OpenAI from "openai";
import { percentile } from "./measure.ts";

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
    for await (const event of stream) {
      if (event.type !== "response.output_text.delta") continue;
      const now = performance.timeOrigin + performance.now();
      for (const stamp of event.delta.trim().split(" ")) delays.push(now - Number(stamp));
    }
  };
  await Promise.all(Array.from({ length: streams }, follow));
  return { p50Ms: percentile(delays, 0.5), p95Ms: percentile(delays, 0.95), deltas: delays.length };
}
