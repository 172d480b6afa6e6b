import { always, calls, text } from "../src/simulator/server.ts";
import type { AnswerOptions, BilledCall, SimulatedRequest } from "../src/simulator/server.ts";
import type { Database } from "../src/store/database.ts";
import type { Lane } from "./lane.ts";
import type { Random } from "./random.ts";

/** One model call; or a model call, two tools at a time, and a second call that answers. */
export type Scenario = "answer" | "tools";

const announcement = "Let me charge that and look it up. ";
const deltas = Array.from({ length: 30 }, (_, at) => `word${at} `);
/** Between deltas: enough for several writes of events in one answer. */
const deltaDelayMs = 15;
/** The number of the step that answers in the scenario with tools. */
const answerStepAfterTools = 4;

/** A call as it came to the model. */
export interface ModelCall {
  step: number;
  /** To find it on the bill. */
  requestId: string;
  /** What an earlier call of the step had bought was on record when this one came. */
  isBoughtAgain: boolean;
}

/** What the turn has to say in the end, of all its messages. */
export function expectedText(scenario: Scenario): string {
  return (scenario === "tools" ? announcement : "") + deltas.join("");
}

/** The number of the step that calls the model with these items. */
export function stepOf(request: SimulatedRequest): number {
  return request.items.some((item) => item.type === "function_call_output")
    ? answerStepAfterTools
    : 1;
}

/** What the model answers, however often it is called. */
export function answerOf(scenario: Scenario, step: number, options: AnswerOptions = {}) {
  const paced = { deltaDelayMs, ...options };
  if (scenario === "answer" || step !== 1) return text("", { deltas, ...paced });
  const order = JSON.stringify({ order: "A1" });
  return calls(
    [
      { name: "charge", arguments: order },
      { name: "look_up", arguments: order },
    ],
    { text: announcement, ...paced },
  );
}

/**
 * Whether a call buys what there is: an earlier one of the step was used on record, or its response can
 * be fetched because its id is on record with the step.
 */
async function isOnRecord(database: Database, earlier: readonly BilledCall[]): Promise<boolean> {
  const find = () =>
    database.query(
      `SELECT FROM steps WHERE response_id = ANY($1)
       UNION ALL SELECT FROM model_calls WHERE outcome = 'used' AND response_id = ANY($1)`,
      [earlier.map((billed) => billed.responseId)],
    );
  // A connection that was idle while the server went away fails once.
  const rows = await find().catch(find);
  return rows.length > 0;
}

/** Notes a call, and whether it is bought again. */
export async function noteCall(
  { simulator, database }: Pick<Lane, "simulator" | "database">,
  calls: ModelCall[],
  request: SimulatedRequest,
): Promise<ModelCall> {
  const step = stepOf(request);
  const { requestId } = request;
  const call = { step, requestId, isBoughtAgain: false };
  const earlier = calls.filter((other) => other.step === step).map((other) => other.requestId);
  calls.push(call);
  if (earlier.length > 0) {
    const bought = simulator.bill.filter((billed) => earlier.includes(billed.requestId));
    call.isBoughtAgain = await isOnRecord(database, bought);
  }
  return call;
}

/**
 * Scripts the model for one turn: it answers the same however often it is called, and passes by the
 * tripwire before its headers, after its first event, and in the middle of its answer.
 *
 * @returns the calls, as they come.
 */
export function scriptModel(
  lane: Pick<Lane, "simulator" | "tripwire" | "database">,
  scenario: Scenario,
  random: Random,
): ModelCall[] {
  const { simulator, tripwire } = lane;
  const seen: ModelCall[] = [];
  const middle = 2 + Math.floor(random() * (deltas.length - 3));
  const gateAt = (at: number | "headers", what: string, process: string) => ({
    at,
    reached: Promise.resolve(),
    open: () => {},
    pass: () => tripwire.pass({ process, what, side: "before" }).catch(() => {}),
  });
  simulator.script(
    always(async (request) => {
      const { step } = await noteCall(lane, seen, request);
      const process = String(request.headers["authorization"]).replace("Bearer ", "");
      const asksForTools = scenario === "tools" && step === 1;
      const pauseAfter = [
        gateAt("headers", "model call", process),
        gateAt(0, "first event", process),
        gateAt(asksForTools ? 2 : middle, "mid-stream", process),
      ];
      return answerOf(scenario, step, { pauseAfter });
    }),
  );
  return seen;
}
