import { always, calls, text } from "../src/simulator/server.ts";
import type { SimulatedRequest, Simulator } from "../src/simulator/server.ts";
import type { Random } from "./random.ts";
import type { Tripwire } from "./tripwire.ts";

/** One model call; or a model call, two tools at a time, and a second call that answers. */
export type Scenario = "answer" | "tools";

const announcement = "Let me charge that and look it up. ";
const deltas = Array.from({ length: 16 }, (_, at) => `word${at} `);
/** Between deltas: enough for several writes of events in one answer. */
const deltaDelayMs = 10;
/** The number of the step that answers in the scenario with tools. */
const answerStepAfterTools = 4;

/** A call as it came to the model. */
export interface ModelCall {
  step: number;
  arrivedAt: Date;
  /** To find it on the bill. */
  requestId: string;
}

/** What the turn has to say in the end, of all its messages. */
export function expectedText(scenario: Scenario): string {
  return (scenario === "tools" ? announcement : "") + deltas.join("");
}

function stepOf(request: SimulatedRequest): number {
  return request.items.some((item) => item.type === "function_call_output")
    ? answerStepAfterTools
    : 1;
}

/**
 * Scripts the model for one turn: it answers the same however often it is called, and passes by the
 * tripwire before its headers, after its first event, and in the middle of its answer.
 *
 * @returns the calls, as they come.
 */
export function scriptModel(
  simulator: Simulator,
  tripwire: Tripwire,
  scenario: Scenario,
  random: Random,
): ModelCall[] {
  const seen: ModelCall[] = [];
  const middle = 2 + Math.floor(random() * (deltas.length - 3));
  const gateAt = (at: number | "headers", what: string, process: string) => ({
    at,
    reached: Promise.resolve(),
    open: () => {},
    pass: () => tripwire.pass({ process, what, side: "before" }).catch(() => {}),
  });
  simulator.script(
    always((request) => {
      const step = stepOf(request);
      seen.push({ step, arrivedAt: new Date(), requestId: request.requestId });
      const process = String(request.headers["authorization"]).replace("Bearer ", "");
      const asksForTools = scenario === "tools" && step === 1;
      const pauseAfter = [
        gateAt("headers", "model call", process),
        gateAt(0, "first event", process),
        gateAt(asksForTools ? 2 : middle, "mid-stream", process),
      ];
      if (!asksForTools) return text("", { deltas, deltaDelayMs, pauseAfter });
      return calls(
        [
          { name: "charge", arguments: { order: "A1" } },
          { name: "look_up", arguments: { order: "A1" } },
        ],
        { text: announcement, deltaDelayMs, pauseAfter },
      );
    }),
  );
  return seen;
}
