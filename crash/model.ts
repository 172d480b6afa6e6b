import { always, calls, text } from "../src/simulator/server.ts";
import type { AnswerOptions, BilledCall, SimulatedRequest } from "../src/simulator/server.ts";
import type { Database } from "../src/store/database.ts";
import type { Lane } from "./lane.ts";
import type { Random } from "./random.ts";
import type { Scenario } from "./scenario.ts";

/** What a model says before it calls tools. */
export const announcement = "Let me charge that and look it up. ";
/** The functions that it calls at once. */
export const toolNames = ["charge", "look_up"];
const deltasPerAnswer = 30;
/** Between deltas: enough for several writes of events in one answer. */
const deltaDelayMs = 15;
/** The number of the step that answers behind the outputs of two tools. */
const answerStepAfterTools = 4;

/** Which step calls the model, of which turn of its cell, both from 1. */
export interface Place {
  turn: number;
  step: number;
}

/** A call as it came to the model. */
export interface ModelCall extends Place {
  /** To find it on the bill. */
  requestId: string;
  /** What an earlier call of the step had bought was on record when this one came. */
  isBoughtAgain: boolean;
}

function deltasOf(turn: number): string[] {
  return Array.from({ length: deltasPerAnswer }, (_, at) => `word${turn}.${at} `);
}

/** What the model answers to a turn in the end. */
export function answerText(turn = 1): string {
  return deltasOf(turn).join("");
}

/** The model's answer. */
export function say(turn = 1, options: AnswerOptions = {}) {
  return text("", { deltas: deltasOf(turn), deltaDelayMs, ...options });
}

/** The model's wish to have functions called, all at once. */
export function callFunctions(names: readonly string[], options: AnswerOptions = {}) {
  const order = JSON.stringify({ order: "A1" });
  const wanted = names.map((name) => ({ name, arguments: order }));
  return calls(wanted, { text: announcement, deltaDelayMs, ...options });
}

/** The number of the step that calls the model with these items. */
export function stepOf({ items }: SimulatedRequest): number {
  const asked = items.findLastIndex((item) => "role" in item && item.role === "user");
  const isAnswered = items.slice(asked).some((item) => item.type === "function_call_output");
  return isAnswered ? answerStepAfterTools : 1;
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

/** The calls of the same step so far. */
function callsAt(calls: readonly ModelCall[], { turn, step }: Place): ModelCall[] {
  return calls.filter((other) => other.turn === turn && other.step === step);
}

/**
 * Notes a call, and whether it is bought again.
 *
 * @param replayed the same step of the turn that this one replays.
 */
export async function noteCall(
  { simulator, database }: Pick<Lane, "simulator" | "database">,
  calls: ModelCall[],
  place: Place,
  requestId: string,
  replayed?: Place,
): Promise<void> {
  const call = { ...place, requestId, isBoughtAgain: false };
  const places = replayed === undefined ? [place] : [place, replayed];
  const before = places.flatMap((each) => callsAt(calls, each));
  const earlier = before.map((other) => other.requestId);
  calls.push(call);
  if (earlier.length > 0) {
    const bought = simulator.bill.filter((billed) => earlier.includes(billed.requestId));
    call.isBoughtAgain = await isOnRecord(database, bought);
  }
}

/**
 * Scripts the model for one cell: it answers as the scenario says, and passes by the tripwire before
 * its headers, after its first event, and in the middle of its answer.
 *
 * @param asked how many turns have been asked for.
 * @returns the calls, as they come.
 */
export function scriptModel(
  lane: Pick<Lane, "simulator" | "tripwire" | "database">,
  scenario: Scenario,
  asked: () => number,
  random: Random,
): ModelCall[] {
  const { simulator, tripwire } = lane;
  const seen: ModelCall[] = [];
  const middle = 2 + Math.floor(random() * (deltasPerAnswer - 3));
  const gateAt = (at: number | "headers", what: string, process: string) => ({
    at,
    reached: Promise.resolve(),
    open: () => {},
    pass: () => tripwire.pass({ process, what, side: "before" }).catch(() => {}),
  });
  simulator.script(
    always(async (request) => {
      const place = { turn: scenario.turnOf(request, asked()), step: stepOf(request) };
      const nth = callsAt(seen, place).length + 1;
      const isReplay = scenario.second === "replays" && place.turn > 1;
      const replayed = isReplay ? { ...place, turn: place.turn - 1 } : undefined;
      await noteCall(lane, seen, place, request.requestId, replayed);
      const process = String(request.headers["authorization"]).replace("Bearer ", "");
      const pausedAt = (at: number) => [
        gateAt("headers", "model call", process),
        gateAt(0, "first event", process),
        gateAt(at, "mid-stream", process),
      ];
      return scenario.answer({
        ...place,
        nth,
        model: request.body.model,
        middle,
        pausedAt,
        simulator,
      });
    }),
  );
  return seen;
}
