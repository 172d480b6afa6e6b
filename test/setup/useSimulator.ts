import OpenAI from "openai";
import { afterAll, afterEach } from "vitest";
import { startSimulator } from "../../src/simulator/server.ts";
import type { Simulator } from "../../src/simulator/server.ts";

/** A simulator for the tests of a file, with an SDK's client of it; each test keeps to its own script. */
export async function useSimulator(): Promise<{ simulator: Simulator; client: OpenAI }> {
  const simulator = await startSimulator();
  afterEach(() => {
    try {
      simulator.assertConsumed();
    } finally {
      simulator.reset();
    }
  });
  afterAll(() => simulator.close());
  const client = new OpenAI({ baseURL: simulator.baseUrl, apiKey: "any", maxRetries: 0 });
  return { simulator, client };
}
