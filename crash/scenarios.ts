import { fault } from "../src/simulator/server.ts";
import type { SimulatedRequest } from "../src/simulator/server.ts";
import { disconnectGraceMs } from "../src/turn/limits.ts";
import { announcement, answerText, callFunctions, say, toolNames } from "./model.ts";
import type { CallToAnswer, Scenario } from "./scenario.ts";
import type { CellTurn, Expected, Users } from "./users.ts";

const failAfterDeltas = 3;
/** Of an answer that something is done to meanwhile: it takes 3 s. */
const slowDeltaMs = 100;
/** Of one that goes on while everybody has left: it takes 9 s. */
const slowerDeltaMs = 300;

/** The last input that a user gave names its turn. */
function turnOfInput({ items }: SimulatedRequest): number {
  const asked = items.findLast((item) => "role" in item && item.role === "user");
  return Number(/turn (\d+)/.exec(JSON.stringify(asked))?.[1] ?? 1);
}

/** Of turns that are asked for one after the other, whatever their input is. */
function latestTurn(_: SimulatedRequest, asked: number): number {
  return asked;
}

function answer({ turn, middle, pausedAt }: CallToAnswer) {
  return say(turn, { pauseAfter: pausedAt(middle) });
}

/** The first turn takes its time, so that the second one finds it running. */
function answerFirstIn(deltaDelayMs: number): Scenario["answer"] {
  return (call) => {
    const { turn, middle, pausedAt } = call;
    if (turn > 1) return answer(call);
    return say(turn, { pauseAfter: pausedAt(middle), deltaDelayMs });
  };
}

function callTools(names: readonly string[], { pausedAt }: CallToAnswer) {
  return callFunctions(names, { pauseAfter: pausedAt(2) });
}

/** One turn that the model answers at once. */
const plain: Scenario = {
  agent: (policy) => policy,
  deployment: "apart",
  isAlone: true,
  givenUp: 0,
  run: (users) => users.ask().ended,
  second: null,
  turnOf: turnOfInput,
  answer,
};

async function deleteResponse({ baseUrl }: CallToAnswer["simulator"], id: string): Promise<void> {
  const headers = { authorization: "Bearer none" };
  const { ok } = await fetch(`${baseUrl}/responses/${id}`, { method: "DELETE", headers });
  if (!ok) throw new Error(`The response ${id} could not be deleted.`);
}

/** It ends whole, or as cancelled with the text so far. */
const cut = { statuses: ["cancelled", "completed"] } as const;

/** A turn in whose midst something happens, and the turns that come of that, in one conversation. */
function interfered(
  meanwhile: (users: Users, first: CellTurn, conversation: string) => unknown,
  expected: Partial<Expected> = {},
  headers: Record<string, string> = {},
): Scenario {
  return {
    ...plain,
    isAlone: false,
    async run(users) {
      const conversation = await users.openConversation();
      const first = users.ask({ conversation }, expected, headers);
      await first.shown;
      await meanwhile(users, first, conversation);
      await Promise.all(users.turns.map(({ ended }) => ended));
    },
    answer: answerFirstIn(slowDeltaMs),
  };
}

/** A turn that is ended early, then one more in its conversation, which is free at once. */
function cutShort(
  end: (users: Users, first: CellTurn) => unknown,
  headers: Record<string, string> = {},
): Scenario {
  return interfered(
    async (users, first, conversation) => {
      await end(users, first);
      await first.ended;
      users.ask({ conversation });
    },
    cut,
    headers,
  );
}

const askClient = "ask_client";

export const scenarios = {
  answer: plain,
  /** The same in a process that is a gateway and a worker. */
  served: { ...plain, deployment: "together" },
  /** A model call, two tools at a time, and a second call that answers. */
  tools: {
    ...plain,
    run: (users) => users.ask({}, { text: announcement + answerText(), calls: toolNames }).ended,
    answer: (call) => (call.step === 1 ? callTools(toolNames, call) : answer(call)),
  },
  /** A call fails in the middle, the next one for another reason, and another model answers. */
  fallback: {
    ...plain,
    agent: (policy) => `${policy}-fallback`,
    givenUp: 1,
    answer(call) {
      if (call.model !== "gpt-crash") return answer(call);
      return call.nth === 1 ? fault.failed(failAfterDeltas, "server_error", say()) : fault.quota();
    },
  },
  /** No model answers, so the agent's own text does. */
  static: {
    ...plain,
    agent: (policy) => `${policy}-static`,
    run: (users) => users.ask({}, { text: "No model answers now." }).ended,
    answer: () => fault.quota(),
  },
  /** The provider loses a response that it was to keep, and the model is called again. */
  gone: {
    ...plain,
    givenUp: 1,
    answer(call) {
      const { nth, simulator } = call;
      if (nth > 1) return answer(call);
      const id = `resp_gone_${crypto.randomUUID()}`;
      const lose = () => deleteResponse(simulator, id);
      const loss = { at: failAfterDeltas, reached: Promise.resolve(), open() {} };
      return say(1, { id, pauseAfter: { ...loss, pass: lose } });
    },
  },
  cancelled: cutShort((users, first) => users.cancel(first)),
  /** The provider has ended its answer, of which nobody hears any more, when it is cancelled. */
  "cancelled late": {
    ...cutShort(async (users, first) => {
      await users.answered();
      await users.cancel(first);
    }),
    answer: (call) =>
      call.turn === 1 ? fault.silence(failAfterDeltas, answer(call)) : answer(call),
  },
  "cancelled in Temporal": cutShort((users, first) => users.cancelInTemporal(first)),
  left: {
    ...cutShort((users, first) => users.leave(first), {
      "x-turnkeeper-on-disconnect": "cancel",
      "x-turnkeeper-disconnect-grace-ms": `${disconnectGraceMs.min}`,
    }),
    answer: answerFirstIn(slowerDeltaMs),
  },
  queued: interfered((users, _, conversation) =>
    users.ask({ conversation }, {}, { "x-turnkeeper-when-busy": "queue" }),
  ),
  interrupted: {
    ...interfered(
      (users, _, conversation) =>
        users.ask({ conversation }, {}, { "x-turnkeeper-when-busy": "interrupt" }),
      cut,
    ),
    second: "interrupts",
  },
  /** Started in Temporal, by whoever can. */
  direct: { ...plain, run: (users) => users.askDirectly().ended },
  "direct, queued": interfered((users, _, conversation) => users.askDirectly({ conversation })),
  /** A tool of Turnkeeper's and one of the client's, whose call ends the turn; the next one answers it. */
  client: {
    ...plain,
    isAlone: false,
    async run(users) {
      const parameters = { type: "object", properties: {} };
      const tool = { type: "function", name: askClient, parameters, strict: false } as const;
      const conversation = await users.openConversation();
      const calls = ["charge", askClient];
      const expected = { text: announcement, calls, openCalls: [askClient] };
      const first = users.ask({ conversation, tools: [tool] }, expected);
      await first.ended;
      const call = first.subscriber.output().find((item) => item.type === "function_call");
      const output = { type: "function_call_output", output: "done by ask_client" } as const;
      await users.ask({ conversation, input: [{ ...output, call_id: call?.call_id ?? "" }] }).ended;
    },
    turnOf: latestTurn,
    answer: (call) => (call.turn === 1 ? callTools(["charge", askClient], call) : answer(call)),
  },
  /** The model fails behind the tools, and the turn with it; a replay goes on there. */
  replayed: {
    ...plain,
    isAlone: false,
    second: "replays",
    async run(users) {
      const failed = users.ask({}, { text: "", statuses: ["failed"] });
      await failed.ended;
      const text = announcement + answerText(2);
      await users.replay(failed, { text, calls: toolNames }).ended;
    },
    turnOf: latestTurn,
    answer(call) {
      if (call.step === 1) return callTools(toolNames, call);
      return call.turn === 1 ? fault.quota() : answer(call);
    },
  },
} satisfies Record<string, Scenario>;
