import { residentMbOf } from "../bench/environment.ts";
import type { LaneProcess } from "./laneProcess.ts";

interface Sample {
  at: number;
  megabytes: number;
}

export interface Peak {
  name: string;
  megabytes: number;
}

/** The resident memory of processes, sampled while they work. */
export class Memory {
  readonly #samples = new Map<string, Sample[]>();
  readonly #startedAt = performance.now();
  readonly #timer: NodeJS.Timeout;

  constructor(processes: readonly LaneProcess[]) {
    const everyMs = 2_000;
    this.#timer = setInterval(() => {
      for (const process of processes) void this.#sample(process);
    }, everyMs);
  }

  async #sample(process: LaneProcess): Promise<void> {
    const megabytes = await residentMbOf(process.pid).catch(() => Number.NaN);
    if (!Number.isFinite(megabytes)) return;
    const samples = this.#samples.get(process.name) ?? [];
    this.#samples.set(process.name, samples);
    samples.push({ at: performance.now() - this.#startedAt, megabytes });
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** The most that any of the processes had, and which one. */
  peak(): Peak {
    const peaks = [...this.#samples].map(([name, samples]) => ({
      name,
      megabytes: Math.max(...samples.map(({ megabytes }) => megabytes)),
    }));
    const none = { name: "none", megabytes: 0 };
    return peaks.reduce((most, each) => (each.megabytes > most.megabytes ? each : most), none);
  }

  /**
   * By how much each process had grown at the end, as a share of what it had after its first minutes:
   * the median of the last fifth against that of the second fifth.
   */
  growth(): Map<string, number> {
    const shares = [...this.#samples].map(([name, samples]): [string, number] => {
      const lastAt = samples.at(-1)?.at ?? 0;
      const median = (from: number, to: number): number => {
        const part = samples.filter(({ at }) => at >= lastAt * from && at <= lastAt * to);
        const sorted = part.map(({ megabytes }) => megabytes).sort((left, right) => left - right);
        return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
      };
      return [name, median(0.8, 1) / median(0.2, 0.4) - 1];
    });
    return new Map(shares);
  }
}
