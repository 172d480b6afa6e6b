// A server of OpenAI's Responses API for development and tests. Its wire format is the real one.
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { BilledCall } from "./bill.ts";
import type { Occurrence, Occurrences } from "./occurrences.ts";
import type { SimulatorOptions } from "./options.ts";
import type { ScriptStep, SimulatedRequest } from "./script.ts";
import { Simulation } from "./simulation.ts";

export type { BilledCall } from "./bill.ts";
export { fault } from "./fault.ts";
export { gate } from "./gate.ts";
export type { Occurrence, Occurrences } from "./occurrences.ts";
export type { SimulatorOptions } from "./options.ts";
export { always, calls, hostedCall, join, reasoning, refusal, text, when } from "./script.ts";
export type { AnswerOptions, ScriptStep, SimulatedRequest } from "./script.ts";

export interface Simulator {
  /** `http://127.0.0.1:PORT/v1` */
  readonly baseUrl: string;
  /** One entry per POST /v1/responses that was read, in order of arrival. */
  readonly bill: readonly BilledCall[];
  /** Requests to all endpoints. */
  readonly requests: readonly SimulatedRequest[];
  /** Appends steps. A call takes the first step whose `match`, if any, accepts it. */
  script(...steps: ScriptStep[]): void;
  /** Throws if a call had no step, or a step (other than `always`) had no call. */
  assertConsumed(): void;
  /** Forgets script, bill, requests and stored responses; what is running is cut off. */
  reset(): void;
  /** Open event streams. */
  connections(): number;
  /** Makes the stream of a background response too old to be resumed. */
  expireStream(responseId: string): void;
  /** The next occurrence that no one has waited for yet, past ones included. Has no timeout. */
  waitFor<N extends Occurrence>(
    event: N,
    predicate?: (value: Occurrences[N]) => boolean,
  ): Promise<Occurrences[N]>;
  close(): Promise<void>;
}

/** Listens on the loopback. Throws if the port is taken. */
export async function startSimulator(options: SimulatorOptions = {}): Promise<Simulator> {
  let simulation = new Simulation(options);
  const server = createServer((incoming, outgoing) => void simulation.handle(incoming, outgoing));
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port ?? 0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    baseUrl: `http://127.0.0.1:${port}/v1`,
    get bill() {
      return simulation.bill;
    },
    get requests() {
      return simulation.requests;
    },
    script: (...steps) => simulation.script.push(...steps),
    assertConsumed: () => simulation.script.assertConsumed(),
    connections: () => simulation.streams.size,
    expireStream: (responseId) => void simulation.expired.add(responseId),
    waitFor: (event, predicate) => simulation.occurrences.waitFor(event, predicate),
    // A new simulation, so that what is left over from the old one has no one to tell.
    reset() {
      simulation.stop();
      simulation = new Simulation(options);
    },
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      simulation.stop();
      server.closeAllConnections();
      await closed;
    },
  };
}
