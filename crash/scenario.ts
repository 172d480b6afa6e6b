import type { Gate } from "../src/simulator/gate.ts";
import type { Step } from "../src/simulator/script.ts";
import type { SimulatedRequest, Simulator } from "../src/simulator/server.ts";
import type { Policy } from "./cells.ts";
import type { Deployment } from "./lane.ts";
import type { Place } from "./model.ts";
import type { Users } from "./users.ts";

/** A call that the model has to answer. */
export interface CallToAnswer extends Place {
  /** Counts the calls of the step, from 1. */
  nth: number;
  model: string | undefined;
  /** A place in the middle of an answer, drawn for the cell. */
  middle: number;
  /** The gates of an answer, whose middle is behind so many deltas. */
  pausedAt(middle: number): Gate[];
  simulator: Simulator;
}

/** What goes on in a cell while nothing is killed: how turns are asked for, and what the model says. */
export interface Scenario {
  /** The agent of its turns. */
  agent(policy: Policy): string;
  deployment: Deployment;
  /** Has one turn, whose workflow can be terminated by hand without doing so to others. */
  isAlone: boolean;
  /** Items that subscribers see begun and given up though every process lives. */
  givenUp: number;
  /** Asks for the turns, and resolves when their users have seen their ends. */
  run(users: Users): Promise<unknown>;
  /** What its second turn does with the first one: takes over its finished steps, or cancels it. */
  second: "replays" | "interrupts" | null;
  /** The number of the turn that calls the model, when so many have been asked for. */
  turnOf(request: SimulatedRequest, asked: number): number;
  answer(call: CallToAnswer): Step;
}
