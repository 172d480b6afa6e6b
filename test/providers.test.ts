import { LLMock } from "@copilotkit/aimock";
import type { ChatMessage } from "@copilotkit/aimock";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TurnHandle } from "../src/turnHandle.ts";
import { readModelCalls } from "../src/store/modelCalls.ts";
import { defineTool } from "../src/tools/defineTool.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { outputText } from "../src/turn/items.ts";
import type { Item } from "../src/turn/items.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { describeWith } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

const add = defineTool({
  name: "add",
  description: "Adds two numbers.",
  parameters: {
    type: "object",
    properties: { a: { type: "number" }, b: { type: "number" } },
    required: ["a", "b"],
    additionalProperties: false,
  },
  handler: ({ a, b }) => ({ sum: Number(a) + Number(b) }),
});

const conversationTurns = 10;

/** What aimock understood of a request, in its own form. */
type Seen = Pick<ChatMessage, "role" | "content">;

// Its stream has no sequence numbers, its ids are not of OpenAI's form, its usage lacks all details.
describeWith(["postgres", "temporal"], "a model server that somebody else wrote", () => {
  let model: LLMock;
  let parts: Deployment;

  beforeAll(async () => {
    model = new LLMock({ port: 0, strict: true });
    await model.start();
    parts = await deploy({
      openaiBaseUrl: `${model.url}/v1`,
      agents: [
        defineAgent({ name: "default", model: "gpt-test" }),
        defineAgent({ name: "adder", model: "gpt-test", tools: [add.name] }),
      ],
      tools: [add],
    });
  });

  afterEach(() => {
    model.reset();
  });

  afterAll(async () => {
    await parts.close();
    await model.stop();
  });

  function requests(): Seen[][] {
    return model.getRequests().map(({ body }) => {
      const { messages } = body as { messages: ChatMessage[] };
      return messages.map(({ role, content }) => ({ role, content }));
    });
  }

  function ledgerOf(turn: TurnHandle) {
    return readModelCalls(parts.database, "default", turn.id);
  }

  test("holds a conversation of ten turns, each with all that was said before", async () => {
    model.on({ predicate: () => true }, ({ messages }) => ({
      content: `Answer ${messages.filter(({ role }) => role === "user").length}.`,
    }));
    const said: Seen[] = [];
    let conversation: string | null = null;
    for (let number = 1; number <= conversationTurns; number++) {
      const question = `Question ${number}?`;
      const turn = await parts.turnkeeper.turns.start({ conversation, input: question });
      conversation = turn.conversationId;
      const { status, text, accumulated } = await ended(turn);
      expect({ status, text }).toEqual({ status: "completed", text: `Answer ${number}.` });
      expect(outputText(accumulated.output as unknown as Item[])).toBe(text);
      said.push({ role: "user", content: question });
      expect(requests().at(-1)).toEqual(said);
      said.push({ role: "assistant", content: text });
    }
    expect(requests()).toHaveLength(conversationTurns);
  });

  test("calls a server tool, under the same call id in each turn", async () => {
    const call = { id: "call_1", name: "add", arguments: '{"a":19,"b":23}' };
    model.on({ hasToolResult: false }, { toolCalls: [call] });
    model.on({ hasToolResult: true, toolResultContains: "42" }, { content: "It is 42." });
    let conversation: string | null = null;
    for (let number = 1; number <= 2; number++) {
      const input = "What is 19 + 23?";
      const turn = await parts.turnkeeper.turns.start({ agent: "adder", conversation, input });
      conversation = turn.conversationId;
      const { status, text, response } = await ended(turn);
      expect({ status, text }).toEqual({ status: "completed", text: "It is 42." });
      expect((response.output as Item[]).filter(({ type }) => type === "mcp_call")).toMatchObject([
        { status: "completed", name: "add", arguments: call.arguments, output: '{"sum":42}' },
      ]);
    }
    const roles = ["user", "assistant", "tool", "assistant"];
    expect(
      requests()
        .at(-1)
        ?.map(({ role }) => role),
    ).toEqual([...roles, ...roles.slice(0, 3)]);
  });

  test("splits characters between deltas, and says 0 for its usage, which is estimated then", async () => {
    const content = "naïve \u{1F600} done";
    model.on({ predicate: () => true }, { content }, { chunkSize: 1 });
    const turn = await parts.turnkeeper.turns.start({ input: "Hello" });
    const { text, accumulated, turn: record } = await ended(turn);
    expect(text).toBe(content);
    expect(outputText(accumulated.output as unknown as Item[])).toBe(content);
    // It says 0 of everything, which no answer costs.
    expect(record.usage).toBeNull();
    const [call] = await ledgerOf(turn);
    expect(call).toMatchObject({ outcome: "used", certainty: "estimated", costUsd: null });
    expect(call?.tokens?.outputTokens).toBeGreaterThan(0);
  });

  test("reasons in summaries before it answers, over two turns", async () => {
    model.on({ predicate: () => true }, { content: "Four.", reasoning: "Two and two." });
    const first = await parts.turnkeeper.turns.start({ model: "gpt-5", input: "2 + 2?" });
    const { response } = await ended(first);
    expect(response.output).toMatchObject([
      { type: "reasoning", summary: [{ type: "summary_text", text: "Two and two." }] },
      { type: "message" },
    ]);
    const conversation = first.conversationId;
    const second = await parts.turnkeeper.turns.start({
      model: "gpt-5",
      conversation,
      input: "Sure?",
    });
    expect(await ended(second)).toMatchObject({ status: "completed", text: "Four." });
  });

  test("refuses once, then cuts its stream off: the turn has one whole answer", async () => {
    const content = "A whole answer.";
    const any = { predicate: () => true };
    const cut = { chunkSize: 4, truncateAfterChunks: 6, latency: 10 };
    model.on({ ...any, sequenceIndex: 0 }, { content }, cut);
    model.on(any, { content });
    model.nextRequestError(503, { message: "Too busy.", code: "server_overloaded" });
    // A model that aimock knows not to reason: what is cut off is the text.
    const turn = await parts.turnkeeper.turns.start({ model: "gpt-4o", input: "Hello" });
    expect(await ended(turn)).toMatchObject({ status: "completed", text: content });
    expect(await ledgerOf(turn)).toMatchObject([
      { outcome: "wasted", failureClass: "overloaded" },
      { outcome: "wasted", failureClass: "stream_reset" },
      { outcome: "used", failureClass: null },
    ]);
  });
});
