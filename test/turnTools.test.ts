import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { calls, fault, join, text } from "../src/simulator/server.ts";
import type { SimulatedRequest } from "../src/simulator/server.ts";
import { readHistory } from "../src/store/conversations.ts";
import { readStepRecords } from "../src/store/steps.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const anyObject = { type: "object", properties: {} };
const nasty = "NUL \u0000, lone high \ud800, lone low \udc00, and a pair \ud83d\ude00";

/** Handlers wait here until as many calls have come as shall run side by side. */
let meeting = { expected: 0, arrived: 0, all: Promise.withResolvers<void>() };

const tools = [
  defineTool({
    name: "add",
    description: "Adds.",
    parameters: {
      type: "object",
      properties: { a: { type: "number" }, b: { type: "number" } },
      required: ["a", "b"],
      additionalProperties: false,
    },
    handler: ({ a, b }) => ({ sum: Number(a) + Number(b) }),
  }),
  defineTool({
    name: "meet",
    description: "Waits for the others.",
    parameters: anyObject,
    async handler(_, { callId }) {
      meeting.arrived += 1;
      if (meeting.arrived === meeting.expected) meeting.all.resolve();
      await meeting.all.promise;
      return callId;
    },
  }),
  defineTool({
    name: "key",
    description: "Tells its idempotency key.",
    parameters: anyObject,
    handler: (_, { idempotencyKey }) => idempotencyKey,
  }),
  defineTool({
    name: "fail",
    description: "Throws.",
    parameters: anyObject,
    handler() {
      throw new Error("no such luck");
    },
  }),
  defineTool({
    name: "hang",
    description: "Never answers.",
    parameters: anyObject,
    timeoutMs: 100,
    handler: () => new Promise(() => {}),
  }),
  defineTool({
    name: "huge",
    description: "Returns 100 MB.",
    parameters: anyObject,
    handler: () => "x".repeat(100_000_000),
  }),
  defineTool({
    name: "odd",
    description: "Returns what JSON has no form for.",
    parameters: { type: "object", properties: { kind: { type: "string" } } },
    handler({ kind }) {
      if (kind === "undefined") return undefined;
      if (kind === "bigint") return 1n;
      const cycle: { self?: unknown } = {};
      cycle.self = cycle;
      return cycle;
    },
  }),
  defineTool({
    name: "nasty",
    description: "Returns text that databases choke on.",
    parameters: anyObject,
    handler: () => nasty,
  }),
];

const clientTool = {
  type: "function",
  name: "ask_user",
  description: "The client's own.",
  parameters: anyObject,
  strict: false,
};

type Output = { call_id: string; output: string };

/** The tool outputs that a model call was shown. */
function outputsIn(request: SimulatedRequest | undefined): Output[] {
  const items = (request?.body.input ?? []) as unknown as (Output & { type: string })[];
  return items.filter((item) => item.type === "function_call_output");
}

function errorType(output: string | undefined): unknown {
  return (JSON.parse(output ?? "{}") as { error?: { type?: unknown } }).error?.type;
}

describeWith(["postgres", "temporal"], "a turn with tools", () => {
  let deployment: Deployment;

  beforeAll(async () => {
    deployment = await deploy({
      tools,
      agents: [
        defineAgent({ name: "default", model: "gpt-test", tools: tools.map((tool) => tool.name) }),
        defineAgent({ name: "bare", model: "gpt-test" }),
      ],
    });
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  function start(input: string, more: object = {}): Promise<TurnHandle> {
    return deployment.turnkeeper.turns.start({ input, ...more });
  }

  /** Each later input begins with the whole earlier one [10], and every call in it has its output [9]. */
  function expectPrefixesAndPairs(): void {
    const inputs = deployment.simulator.requests.map(
      ({ body }) => body.input as unknown as object[],
    );
    for (const [at, input] of inputs.entries()) {
      const before = inputs[at - 1];
      if (before !== undefined) expect(input.slice(0, before.length)).toEqual(before);
      const items = input as { type: string; call_id: string }[];
      const called = items.filter((item) => item.type === "function_call");
      const answered = items.filter((item) => item.type === "function_call_output");
      expect(answered.map((item) => item.call_id).sort()).toEqual(
        called.map((item) => item.call_id).sort(),
      );
    }
  }

  test("runs one call, shows it as mcp_call, and gives its result to the model", async () => {
    const { simulator } = deployment;
    simulator.script(
      calls([{ name: "add", arguments: { a: 1, b: 2 }, callId: "call_1" }], { text: "Adding." }),
      text("It is 3."),
    );
    const turn = await ended(await start("What is 1 + 2?"));
    expect(turn).toMatchObject({ status: "completed", text: "Adding.It is 3." });
    expect(turn.response.output).toMatchObject([
      { type: "message" },
      {
        type: "mcp_call",
        name: "add",
        arguments: '{"a":1,"b":2}',
        output: '{"sum":3}',
        error: null,
      },
      { type: "message" },
    ]);
    const call = turn.events.filter((event) => event["output_index"] === 1).map(({ type }) => type);
    expect(call.filter((type, at) => type !== call[at - 1])).toEqual([
      "response.output_item.added",
      "response.mcp_call.in_progress",
      "response.mcp_call_arguments.delta",
      "response.mcp_call_arguments.done",
      "response.mcp_call.completed",
      "response.output_item.done",
    ]);
    expect(outputsIn(simulator.requests[1])).toMatchObject([
      { call_id: "call_1", output: '{"sum":3}' },
    ]);
    expectPrefixesAndPairs();
  });

  test("runs the calls of one answer side by side, and hands them on in the model's order", async () => {
    const { simulator } = deployment;
    meeting = { expected: 3, arrived: 0, all: Promise.withResolvers() };
    const ids = ["call_a", "call_b", "call_c"];
    simulator.script(
      calls(ids.map((callId) => ({ name: "meet", arguments: {}, callId }))),
      text("All met."),
    );
    const turn = await ended(await start("Meet"));
    expect(turn).toMatchObject({ status: "completed", text: "All met." });
    expect(outputsIn(simulator.requests[1]).map((item) => item.call_id)).toEqual(ids);
    expectPrefixesAndPairs();
  });

  test("goes on for several rounds, and into the next turn, with what was sent as a prefix", async () => {
    const { simulator } = deployment;
    const add = (a: number) => calls([{ name: "add", arguments: { a, b: 1 } }]);
    simulator.script(add(1), add(2), add(3), text("4"), text("You are welcome."));
    const first = await start("Count to 4");
    expect(await ended(first)).toMatchObject({ status: "completed", text: "4" });
    await ended(await start("Thanks", { previous_response_id: first.id }));
    expect(simulator.requests).toHaveLength(5);
    expectPrefixesAndPairs();
  });

  test.each([
    ["arguments that do not fit the schema", "add", { a: "one" }, "invalid_arguments"],
    ["arguments that are no JSON", "add", '{"a": 1, ', "invalid_arguments"],
    ["a handler that throws", "fail", {}, "tool_error"],
    ["a handler that hangs", "hang", {}, "timeout"],
    ["a handler that returns nothing", "odd", { kind: "undefined" }, "invalid_result"],
    ["a handler that returns a BigInt", "odd", { kind: "bigint" }, "invalid_result"],
    ["a handler that returns a cycle", "odd", { kind: "cycle" }, "invalid_result"],
    ["a tool that nobody has", "no_such_tool", {}, "unknown_tool"],
    ["a name that is no name", `long ${"n".repeat(5_000)}\u0000\ud800`, {}, "unknown_tool"],
  ])("tells the model of %s, and the turn goes on", async (_, name, args, expected) => {
    const { simulator } = deployment;
    simulator.script(calls([{ name, arguments: args }]), text("I see."));
    const turn = await ended(await start("Try"));
    expect(turn).toMatchObject({ status: "completed", text: "I see." });
    expect(turn.response.output[0]).toMatchObject({
      type: "mcp_call",
      status: "failed",
      output: null,
    });
    expect(errorType(outputsIn(simulator.requests[1])[0]?.output)).toBe(expected);
    expectPrefixesAndPairs();
  });

  test("of several calls tells the model what each has come to, and the user gets what did work", async () => {
    const { simulator, database } = deployment;
    meeting = { expected: 2, arrived: 0, all: Promise.withResolvers() };
    simulator.script(
      calls([
        { name: "add", arguments: { a: 1, b: 2 } },
        { name: "fail", arguments: {} },
        { name: "hang", arguments: {} },
        { name: "add", arguments: { a: "one" } },
        { name: "no_such_tool", arguments: {} },
        { name: "meet", arguments: {} },
      ]),
      text("It is 3; the rest did not work."),
    );
    const handle = await start("Try all");
    await expect.poll(() => meeting.arrived).toBe(1);
    // As if its worker had died: another attempt has the step by now.
    await database.query(
      "UPDATE steps SET attempt = 2, token = '' WHERE turn_id = $1 AND name = 'meet'",
      [handle.id],
    );
    meeting.all.resolve();
    const turn = await ended(handle);
    expect(turn).toMatchObject({ status: "completed", text: "It is 3; the rest did not work." });
    const shown = turn.response.output as { type: string; status: string; output?: string }[];
    const [worked, ...others] = shown.filter((item) => item.type === "mcp_call");
    expect(worked).toMatchObject({ status: "completed", output: '{"sum":3}' });
    expect(others.map((item) => item.status)).toEqual(others.map(() => "failed"));
    const told = outputsIn(simulator.requests[1]).map((item) => errorType(item.output));
    const types = ["tool_error", "timeout", "invalid_arguments", "unknown_tool", "outcome_unknown"];
    expect(told).toEqual([undefined, ...types]);
    const steps = await readStepRecords(database, "default", handle.id);
    const outcomes = steps.filter((step) => step.kind === "tool").map((step) => step.outcome);
    expect(outcomes).toEqual(["ok", "error", "unknown", "not_run", "not_run", "unknown"]);
    expectPrefixesAndPairs();
  });

  test("of a turn that fails behind its tools leaves the user what they have done", async () => {
    const { simulator } = deployment;
    simulator.script(calls([{ name: "add", arguments: { a: 1, b: 2 } }], { text: "Adding." }));
    simulator.script(fault.quota());
    const turn = await ended(await start("Add"));
    expect(turn).toMatchObject({ status: "failed", text: "Adding." });
    expect(turn.response.output).toMatchObject([
      { type: "message" },
      { type: "mcp_call", output: '{"sum":3}' },
    ]);
  });

  test("gives a tool a key that can stand in a header, whatever call id the provider chose", async () => {
    const { simulator } = deployment;
    const callId = "call 1/2=\n\u00e9\ud800";
    simulator.script(calls([{ name: "key", arguments: {}, callId }]), text("Done."));
    const handle = await start("Which key?");
    expect((await ended(handle)).status).toBe("completed");
    const [output] = outputsIn(simulator.requests[1]);
    expect(output?.output).toMatch(new RegExp(`^${handle.id}/[0-9a-f]{32}/1$`));
    expectPrefixesAndPairs();
  });

  test("cuts a result of 100 MB to the limit and says so", async () => {
    const { simulator } = deployment;
    simulator.script(calls([{ name: "huge", arguments: {} }]), text("Much."));
    const turn = await ended(await start("Much?"));
    expect(turn.status).toBe("completed");
    const output = outputsIn(simulator.requests[1])[0]?.output ?? "";
    expect(Buffer.byteLength(output)).toBeLessThanOrEqual(256 * 1024);
    expect(output).toContain("The result was cut");
  });

  test("keeps NUL and lone surrogates of input, answer and tool result", async () => {
    const { simulator, database } = deployment;
    simulator.script(
      calls([{ name: "nasty", arguments: { said: nasty } }]),
      text("", { deltas: [nasty, " end"] }),
    );
    const handle = await start(nasty);
    const turn = await ended(handle);
    expect(turn).toMatchObject({ status: "completed", text: `${nasty} end` });
    expect(turn.response.output[0]).toMatchObject({ type: "mcp_call", output: nasty });
    const history = await readHistory(database, "default", handle.conversationId);
    expect(history).toMatchObject([
      { type: "message", content: [{ text: nasty }] },
      { type: "function_call", arguments: JSON.stringify({ said: nasty }) },
      { type: "function_call_output", output: nasty },
      { type: "message", content: [{ text: `${nasty} end` }] },
    ]);
    expectPrefixesAndPairs();
  });

  test("of server and client tools in one answer runs its own, then ends for the client's answer", async () => {
    const { simulator, turnkeeper } = deployment;
    simulator.script(
      calls([
        { name: "ask_user", arguments: { question: "Sure?" }, callId: "call_client" },
        { name: "add", arguments: { a: 2, b: 2 }, callId: "call_server" },
        { name: "ask_user", arguments: { question: "Really?" }, callId: "call_other" },
      ]),
    );
    const first = await start("Add", { tools: [clientTool] });
    const turn = await ended(first);
    expect(turn).toMatchObject({ status: "completed", text: "" });
    expect(turn.response.output).toMatchObject([
      { type: "function_call", call_id: "call_client", status: "completed" },
      { type: "mcp_call", name: "add", output: '{"sum":4}' },
      { type: "function_call", call_id: "call_other", status: "completed" },
    ]);
    const answer = (call_id: string) => ({ type: "function_call_output", call_id, output: "yes" });
    const next = (input: unknown[]) =>
      turnkeeper.turns.start({ input, previous_response_id: first.id, tools: [clientTool] });
    await expect(next([answer("call_client")])).rejects.toMatchObject({ code: "unanswered_calls" });
    const both = [answer("call_client"), answer("call_other")];
    const unknown = [...both, answer("call_of_nobody")];
    await expect(next(unknown)).rejects.toMatchObject({ code: "unknown_call" });
    const servers = [...both, answer("call_server")];
    await expect(next(servers)).rejects.toMatchObject({ code: "unknown_call" });
    simulator.script(text("Done."));
    expect(await ended(await next(both))).toMatchObject({ status: "completed", text: "Done." });
    expectPrefixesAndPairs();
  });

  test.each([
    ["required", "auto"],
    [{ type: "function", name: "add" }, "auto"],
    [
      { type: "allowed_tools", mode: "required", tools: [{ type: "function", name: "add" }] },
      { type: "allowed_tools", mode: "auto", tools: [{ type: "function", name: "add" }] },
    ],
    ["none", "none"],
  ])("forces a call, as %j does, once and not for ever", async (tool_choice, later) => {
    const { simulator } = deployment;
    const add = calls([{ name: "add", arguments: { a: 2, b: 3 } }]);
    simulator.script(add, text("Five."));
    expect(await ended(await start("Add", { tool_choice }))).toMatchObject({ text: "Five." });
    expect(simulator.requests.map(({ body }) => body.tool_choice)).toEqual([tool_choice, later]);
  });

  test("is cancelled where that was asked for while its tool ran, though the client has a call to answer", async () => {
    const { simulator, database } = deployment;
    const both = [
      { name: "meet", arguments: {} },
      { name: "ask_user", arguments: {}, callId: "call_1" },
    ];
    // The other one never comes.
    meeting = { expected: 2, arrived: 0, all: Promise.withResolvers() };
    simulator.script(calls(both), text("Free."));
    const turn = await start("Ask", { tools: [clientTool] });
    await expect.poll(() => meeting.arrived).toBe(1);
    // As everybody's leaving does: nobody tells the workflow.
    await database.query("UPDATE turns SET cancel_requested_at = now() WHERE id = $1", [turn.id]);
    expect((await ended(turn)).status).toBe("cancelled");
    meeting.all.resolve();
    const next = await start("Go on", { conversation: turn.conversationId });
    expect(await ended(next)).toMatchObject({ status: "completed", text: "Free." });
  });

  test("that was cut short lets the client answer the calls that it has shown, or leave them", async () => {
    const { simulator } = deployment;
    const call = calls([{ name: "ask_user", arguments: {}, callId: "call_1" }]);
    const asks = join(call, text("one two three four"));
    const answer = { type: "function_call_output", call_id: "call_1", output: "Yes." };
    for (const input of [[answer], "Never mind."]) {
      simulator.script(fault.incomplete(3, "max_output_tokens", asks), text("Done."));
      const first = await ended(await start("Ask", { tools: [clientTool] }));
      expect(first.status).toBe("incomplete");
      expect(first.response.output).toMatchObject([
        { type: "function_call", call_id: "call_1" },
        { type: "message", status: "incomplete" },
      ]);
      const next = { input, previous_response_id: first.turn.id, tools: [clientTool] };
      const second = await ended(await deployment.turnkeeper.turns.start(next));
      expect(second).toMatchObject({ status: "completed", text: "Done." });
      const [told] = outputsIn(simulator.requests.at(-1));
      if (typeof input !== "string") expect(told).toMatchObject(answer);
      expectPrefixesAndPairs();
      simulator.reset();
    }
  });

  test("waits for the client too where the client's call is of another type", async () => {
    const { simulator } = deployment;
    const item = { id: "ctc_1", type: "custom_tool_call", call_id: "call_custom", name: "grep" };
    const frames = ["added", "done"].map((end) => {
      const type = `response.output_item.${end}`;
      const event = { type, output_index: 7, item: { ...item, input: end === "done" ? "x" : "" } };
      return `event: ${type}\ndata: ${JSON.stringify(event)}\n\n`;
    });
    const asks = calls([{ name: "add", arguments: { a: 2, b: 3 } }]);
    simulator.script(fault.inject(1, frames.join(""), asks));
    const turn = await ended(await start("Find", { tools: [{ type: "custom", name: "grep" }] }));
    expect(turn.status).toBe("completed");
    expect(simulator.bill).toHaveLength(1);
    expect(turn.response.output).toMatchObject([
      { type: "mcp_call", output: '{"sum":5}' },
      { type: "custom_tool_call", call_id: "call_custom", input: "x" },
    ]);
  });

  test("leaves calls of the client's tools alone where the agent has none of its own", async () => {
    deployment.simulator.script(
      join(text("Let me ask."), calls([{ name: "ask_user", arguments: {}, callId: "call_1" }])),
    );
    const turn = await ended(await start("Ask", { model: "bare", tools: [clientTool] }));
    expect(turn.response.output).toMatchObject([
      { type: "message" },
      { type: "function_call", call_id: "call_1" },
    ]);
  });
});

describeWith(["postgres", "temporal"], "a worker with wrong tools", () => {
  test("refuses to start with a schema that is none", async () => {
    const parameters = { type: "object", properties: { a: { type: "no such type" } } };
    const broken = defineTool({ name: "broken", description: "", parameters, handler: () => 1 });
    await expect(deploy({ tools: [broken] })).rejects.toThrow(/"broken".*schema is invalid/);
  });

  test("refuses to start for an agent whose tool is missing", async () => {
    const agents = [defineAgent({ name: "default", model: "gpt-test", tools: ["absent"] })];
    await expect(deploy({ agents })).rejects.toThrow(/"absent".*not registered/);
  });
});
