import { setTimeout as delay } from "node:timers/promises";
import { WorkflowExecutionAlreadyStartedError } from "@temporalio/client";
import { createConversation } from "../src/store/conversations.ts";
import { readTurnOfWorkflow } from "../src/store/turns.ts";
import { turnWorkflowType } from "../src/turn/engineNames.ts";
import { newId } from "../src/turn/ids.ts";
import type { ResponseRequest } from "../src/turn/request.ts";
import { isTerminal } from "../src/turn/turn.ts";
import type { Turn } from "../src/turn/turn.ts";
import type { Lane } from "./lane.ts";
import { laneTaskQueue } from "./lane.ts";
import { answerText } from "./model.ts";
import { comeAgain, Subscriber } from "./subscriber.ts";
import type { Asked } from "./subscriber.ts";

/** What has to become of a turn. */
export interface Expected {
  /** What it has to say in the end, of all its messages; of a cancelled turn a beginning of it. */
  text: string;
  statuses: readonly Turn["status"][];
  /** The functions that it has called by then, in order. */
  calls: readonly string[];
  /** Those of them that the next turn has to answer. */
  openCalls: readonly string[];
}

/** One turn of a cell. */
export interface CellTurn {
  subscriber: Subscriber;
  expected: Expected;
  /** Resolves when its user has seen some text of it, or its end. */
  shown: Promise<void>;
  /** Resolves when its user has seen its end. */
  ended: Promise<void>;
}

const againAfterMs = 100;
const answerWithinMs = 10_000;
/** As Turnkeeper's own starts have it. */
const workflowTaskTimeoutMs = 5_000;

/** Those who ask for the turns of a cell, follow them, and do with them what users do. */
export class Users {
  /** In the order in which they were asked for. */
  readonly turns: CellTurn[] = [];
  /** What gateways have refused, save what subscribers were told. */
  readonly refusals: string[] = [];
  readonly #lane: Lane;
  readonly #agent: string;
  readonly #signal: AbortSignal;
  readonly #begun = new Map<number, PromiseWithResolvers<void>>();

  /** @param signal gives everything up. */
  constructor(lane: Lane, agent: string, signal: AbortSignal) {
    this.#lane = lane;
    this.#agent = agent;
    this.#signal = signal;
  }

  /** Resolves when the cell's turn of that number, from 1, is about to be asked for. */
  begun(number: number): Promise<void> {
    const begun = this.#begun.get(number) ?? Promise.withResolvers<void>();
    this.#begun.set(number, begun);
    return begun.promise;
  }

  /** A conversation of their own. */
  async openConversation(): Promise<string> {
    return (await createConversation(this.#lane.database, "default", {}, [])).id;
  }

  /** Asks for a turn over HTTP. Its input, if none is given, names its number. */
  ask(
    asked: Asked = {},
    expected: Partial<Expected> = {},
    headers: Record<string, string> = {},
  ): CellTurn {
    return this.#follow({ ...this.#request(), ...asked }, expected, headers);
  }

  /** Asks for one in Temporal, as a program in any language does. */
  askDirectly(asked: ResponseRequest = {}): CellTurn {
    const turnId = newId("turn");
    const request = { ...this.#request(), ...asked };
    const turn = this.#follow(null, {}, {}, async () => {
      await this.#until(() => this.#startWorkflow(turnId, request));
      await this.#until(async () => (await this.#read(turnId)) !== null);
      return turnId;
    });
    turn.subscriber.turnId = turnId;
    return turn;
  }

  /** Asks over HTTP for a replay of a turn. */
  replay({ subscriber }: CellTurn, expected: Partial<Expected>): CellTurn {
    const path = `/turnkeeper/v1/turns/${subscriber.turnId}/replay`;
    return this.#follow(null, expected, {}, async () => {
      const { id } = (await this.#post(path)) as { id: string };
      return id;
    });
  }

  /** Resolves when the model has ended an answer, whoever has heard it. */
  async answered(): Promise<void> {
    await this.#lane.simulator.waitFor("finished");
  }

  /** Cancels a turn over HTTP; the request is sent again until it is answered. */
  async cancel({ subscriber }: CellTurn): Promise<void> {
    await this.#post(`/v1/responses/${subscriber.turnId}/cancel`);
  }

  /** Cancels its workflow, as it can be done in Temporal's UI. */
  async cancelInTemporal({ subscriber }: CellTurn): Promise<void> {
    const turnId = subscriber.turnId ?? "";
    await this.#until(async () => {
      const turn = await this.#read(turnId);
      if (turn !== null && isTerminal(turn.status)) return true;
      await this.#lane.temporal.workflow.getHandle(turnId).cancel();
      return true;
    });
  }

  /** Leaves a turn, and comes back when it has ended. */
  leave({ subscriber }: CellTurn): void {
    const turnId = subscriber.turnId ?? "";
    const ended = this.#until(async () => {
      const turn = await this.#read(turnId);
      return turn !== null && isTerminal(turn.status);
    });
    subscriber.leave(ended.catch(() => {}));
  }

  /** Breaks all their connections; they come back. */
  disconnect(): void {
    for (const { subscriber } of this.turns) subscriber.disconnect();
  }

  #request(): { model: string; input: string } {
    return { model: this.#agent, input: `turn ${this.turns.length + 1}` };
  }

  /** @param find has the turn made and returns its id, where it is not the subscriber who asks. */
  #follow(
    asked: Asked | null,
    expected: Partial<Expected>,
    headers: Record<string, string>,
    find: () => Promise<string | null> = async () => null,
  ): CellTurn {
    const number = this.turns.length + 1;
    const shown = Promise.withResolvers<void>();
    const onEvent = ({ type }: { type: string }) => {
      if (type === "response.output_text.delta") shown.resolve();
    };
    const urls = this.#lane.gateways.map(({ url }) => url);
    const subscriber = new Subscriber(urls, asked, { headers, onEvent });
    const follow = async (): Promise<void> => {
      subscriber.turnId = await find();
      await subscriber.follow(this.#signal);
    };
    void this.begun(number);
    this.#begun.get(number)?.resolve();
    const ended = follow();
    ended.then(shown.resolve, shown.reject);
    shown.promise.catch(() => {});
    const whole = {
      text: answerText(number),
      statuses: ["completed"] as const,
      calls: [],
      openCalls: [],
    };
    const turn = {
      subscriber,
      expected: { ...whole, ...expected },
      shown: shown.promise,
      ended,
    };
    this.turns.push(turn);
    return turn;
  }

  async #startWorkflow(turnId: string, request: ResponseRequest): Promise<boolean> {
    const start = {
      taskQueue: laneTaskQueue,
      workflowId: turnId,
      workflowTaskTimeout: workflowTaskTimeoutMs,
      args: [{ request }],
    };
    try {
      await this.#lane.temporal.workflow.start(turnWorkflowType, start);
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
    }
    return true;
  }

  #read(turnId: string): Promise<Turn | null> {
    return readTurnOfWorkflow(this.#lane.database, turnId);
  }

  /** Sends a request again, to the next gateway, until it is answered. */
  async #post(path: string): Promise<unknown> {
    const headers = { "idempotency-key": crypto.randomUUID() };
    const urls = this.#lane.gateways.map(({ url }) => url);
    let sent = 0;
    let answer: unknown;
    await this.#until(async () => {
      const url = `${urls[sent++ % urls.length]}${path}`;
      const signal = AbortSignal.any([this.#signal, AbortSignal.timeout(answerWithinMs)]);
      const response = await fetch(url, { method: "POST", headers, signal });
      if (response.status === comeAgain) return false;
      answer = await response.json();
      if (!response.ok) this.refusals.push(`${path}: ${JSON.stringify(answer)}`);
      return true;
    });
    return answer;
  }

  /** Does it again until it returns true, whatever it throws. */
  async #until(work: () => Promise<boolean>): Promise<void> {
    for (;;) {
      this.#signal.throwIfAborted();
      if (await work().catch(() => false)) return;
      await delay(againAfterMs);
    }
  }
}
