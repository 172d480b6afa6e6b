import { setTimeout as delay } from "node:timers/promises";
import { always, fault } from "../src/simulator/server.ts";
import type { SimulatedRequest } from "../src/simulator/server.ts";
import { readTurnOfWorkflow } from "../src/store/turns.ts";
import type { Lane } from "./lane.ts";
import { pick } from "./random.ts";
import type { Random } from "./random.ts";
import {
  announcement,
  answerText,
  callFunctions,
  noteCall,
  say,
  stepOf,
  toolNames,
} from "./model.ts";
import type { ModelCall } from "./model.ts";
import { Subscriber } from "./subscriber.ts";
import { judge } from "./verdict.ts";
import type { Problem } from "./verdict.ts";

export interface LoadOptions {
  /** Share of the model's calls that fail in one of the ways that are tried again. */
  faultShare: number;
  /** Until the first word of an answer. */
  firstDelayMs: number;
  /** A silent stream is given up after this long. */
  silenceMs: number;
}

/** One model call; or one, two tools at a time, and a second call that answers. */
type Kind = "answer" | "tools";

interface LoadedTurn {
  kind: Kind;
  subscriber: Subscriber;
  calls: ModelCall[];
  startedAt: number;
  /** When its subscriber had seen the end. */
  endedAt: number | null;
}

/** What the accounts of all turns come to. */
export interface Accounts {
  turns: number;
  calls: number;
  problems: Problem[];
}

const resetAfterDeltas = 3;

/** Turns that begin one after the other, and what became of each of them. */
export class Load {
  readonly turns: LoadedTurn[] = [];
  readonly #lane: Lane;
  readonly #random: Random;
  readonly #options: LoadOptions;
  readonly #giveUp = new AbortController();
  readonly #following: Promise<void>[] = [];

  constructor(lane: Lane, random: Random, options: Partial<LoadOptions> = {}) {
    this.#lane = lane;
    this.#random = random;
    this.#options = { faultShare: 0, firstDelayMs: 0, silenceMs: 10_000, ...options };
    lane.simulator.reset();
    lane.effects.reset();
    lane.simulator.script(always((request) => this.#answer(request)));
  }

  /** Begins a turn and follows it to its end. */
  begin(): void {
    const random = this.#random;
    const kind = pick(random, ["answer", "answer", "tools"] as const);
    const model = pick(random, ["foreground", "background"] as const);
    const input = `${kind} ${this.turns.length}`;
    const urls = this.#lane.gateways.map(({ url }) => url);
    // Spread over the gateways; each goes round from where it begins.
    const first = Math.floor(random() * urls.length);
    const order = [...urls.slice(first), ...urls.slice(0, first)];
    const subscriber = new Subscriber(order, { model, input }, this.#options);
    const turn: LoadedTurn = {
      kind,
      subscriber,
      calls: [],
      startedAt: performance.now(),
      endedAt: null,
    };
    this.turns.push(turn);
    const followed = subscriber.follow(this.#giveUp.signal).then(
      () => void (turn.endedAt = performance.now()),
      () => {},
    );
    this.#following.push(followed);
  }

  /** Begins `perSecond` turns a second for that long. */
  async run(perSecond: number, ms: number): Promise<void> {
    const startedAt = performance.now();
    const everyMs = 1_000 / perSecond;
    for (let begun = 0; begun * everyMs < ms; begun++) {
      await delay(Math.max(0, startedAt + begun * everyMs - performance.now()));
      this.begin();
    }
  }

  get unfinished(): number {
    return this.turns.filter((turn) => turn.endedAt === null).length;
  }

  /** Waits for the ends of all turns; those that have none within `ms` are lost. */
  async settle(ms: number): Promise<void> {
    const timer = setTimeout(() => this.#giveUp.abort(), ms);
    await Promise.all(this.#following);
    clearTimeout(timer);
  }

  /** Holds every turn against what must hold of it. */
  async account(): Promise<Accounts> {
    const problems: Problem[] = [];
    for (const turn of this.turns) problems.push(...(await this.#judge(turn)));
    for (const [call, count] of this.#lane.effects.counts) {
      if (!call.startsWith("charge ") || count === 1) continue;
      problems.push({ breach: "tool twice", detail: `${call} had its effect ${count} times` });
    }
    const calls = this.turns.reduce((sum, turn) => sum + turn.calls.length, 0);
    return { turns: this.turns.length, calls, problems };
  }

  async #judge({ subscriber, kind, calls, endedAt }: LoadedTurn): Promise<Problem[]> {
    const { turnId } = subscriber;
    const turn = turnId === null ? null : await readTurnOfWorkflow(this.#lane.database, turnId);
    if (turn === null || endedAt === null) {
      const detail = `the turn ${turnId} did not end: ${String(subscriber.lastError)}`;
      return [{ breach: "lost", detail }];
    }
    const requestIds = new Set(calls.map((call) => call.requestId));
    const problems: Problem[] = subscriber.refusals.map((detail) => ({ breach: "other", detail }));
    const found = await judge({
      database: this.#lane.database,
      turn,
      expected: {
        text: (kind === "tools" ? announcement : "") + answerText(),
        statuses: ["completed"],
        calls: kind === "tools" ? toolNames : [],
        openCalls: [],
      },
      // Faults of the provider end kept responses too, and anything may be struck.
      mostGivenUp: Infinity,
      mayBeUnknown: true,
      // None is cancelled.
      cancelWithinMs: 0,
      backAt: null,
      seen: subscriber.events,
      calls,
      bill: this.#lane.simulator.bill.filter(({ requestId }) => requestIds.has(requestId)),
      effects: new Map(),
    });
    return [...problems, ...found].map(({ breach, detail }) => ({
      breach,
      detail: `${turn.id}: ${detail}`,
    }));
  }

  async #answer(request: SimulatedRequest) {
    const [, kind, number = "0"] =
      /(answer|tools) (\d+)/.exec(JSON.stringify(request.items[0])) ?? [];
    const place = { turn: 1, step: stepOf(request) };
    const calls = this.turns[Number(number)]?.calls ?? [];
    await noteCall(this.#lane, calls, place, request.requestId);
    const { firstDelayMs, faultShare } = this.#options;
    const answer =
      kind === "tools" && place.step === 1
        ? callFunctions(toolNames, { firstDelayMs })
        : say(1, { firstDelayMs });
    if (this.#random() >= faultShare) return answer;
    const faults = [
      fault.rateLimit({ ms: 300 }),
      fault.status(503),
      fault.destroy(),
      fault.reset(resetAfterDeltas, answer),
      fault.eof(resetAfterDeltas, answer),
      fault.failed(resetAfterDeltas, "server_error", answer),
    ];
    return pick(this.#random, faults);
  }
}
