import { expect, test } from "vitest";
import type { Json } from "../src/commands/gatewayClient.ts";
import { renderTurnStory } from "../src/commands/turnStory.ts";
import type { TurnStory } from "../src/gateway/turnObject.ts";
import { failure } from "../src/turn/failures.ts";
import { defaultTurnLimits } from "../src/turn/limits.ts";

type Story = Json<TurnStory>;

const at = (seconds: number) => new Date(Date.UTC(2026, 10, 3, 10, 0, seconds)).toISOString();

const call: Story["model_calls"][number] = {
  step: 1,
  attempt: 1,
  waited_ms: null,
  model: "gpt-6.1-terra",
  response_id: "resp_upstream",
  request_id: "req_1",
  outcome: "used",
  certainty: "exact",
  failure_class: null,
  failure_code: null,
  failure_message: null,
  input_tokens: 1_000,
  cached_tokens: 400,
  cache_write_tokens: 0,
  output_tokens: 50,
  reasoning_tokens: 10,
  cost_usd: 0.001,
  started_at: at(1),
  ended_at: at(3),
};

const step: Story["steps"][number] = {
  number: 2,
  kind: "tool",
  name: "order_status",
  state: "finished",
  attempt: 1,
  outcome: "ok",
  started_at: at(3),
  finished_at: at(4),
};

const story: Story = {
  id: "resp_1",
  object: "turn",
  status: "completed",
  conversation_id: "conv_1",
  agent: "support",
  agent_version: "0123456789ab",
  model: "gpt-6.1-terra",
  original_model: null,
  degraded: null,
  created_at: at(0),
  started_at: at(1),
  ended_at: at(20),
  deadline_at: at(59),
  cancel_requested_at: null,
  usage: null,
  incomplete_reason: null,
  failure: null,
  replay_of: null,
  is_dry_run: false,
  previous_response_id: null,
  background: false,
  metadata: {},
  limits: defaultTurnLimits,
  temporal_url: null,
  cost: { usd: 0.001, is_complete: true },
  steps: [step],
  model_calls: [call],
};

test("a replay's story names its turn, and the steps that it has taken over come first", () => {
  const taken = { ...step, attempt: 0, started_at: null };
  const told = renderTurnStory({ ...story, replay_of: "resp_0", steps: [taken] });
  expect(told).toMatch(/^replay of +resp_0$/m);
  expect(told.indexOf("ok, taken over")).toBeGreaterThan(0);
  expect(told.indexOf("ok, taken over")).toBeLessThan(told.indexOf("model gpt-6.1-terra"));
});

test("a turn's story is told in the order of time, tool calls between model calls", () => {
  const told = renderTurnStory({
    ...story,
    steps: [
      step,
      { ...step, number: 3, name: "refund", outcome: "unknown", attempt: 2, finished_at: at(9) },
      { ...step, number: 4, state: "scheduled", outcome: null, attempt: 0, started_at: null },
    ],
    model_calls: [
      call,
      { ...call, step: 5, attempt: 3, started_at: at(10), ended_at: null, outcome: "open" },
    ],
  });
  const lines = told.slice(told.indexOf("  at  step")).split("\n");
  expect(lines.slice(1, 6)).toEqual([
    expect.stringMatching(
      /^ 1\.0s +1 +1 +model gpt-6\.1-terra +used +2\.0s +1,000 +50 +\$0\.001000$/,
    ),
    expect.stringMatching(/^ 3\.0s +2 +1 +tool order_status +ok +1\.0s$/),
    expect.stringMatching(/^ 3\.0s +3 +2 +tool refund +unknown +6\.0s$/),
    expect.stringMatching(/^10\.0s +5 +3 +model gpt-6\.1-terra +running /),
    expect.stringMatching(/^ +4 +tool order_status +scheduled +-$/),
  ]);
});

test("a failed turn's story says why, with the provider's code", () => {
  const cause = failure("quota_exhausted", "Add credit.", { code: "insufficient_quota" });
  const told = renderTurnStory({ ...story, status: "failed", failure: cause });
  expect(told).toContain("status        failed: quota_exhausted");
  expect(told).toContain("failure       Add credit. (insufficient_quota)");
});

test("a turn that fell back says to what, and from what", () => {
  const fallback = { original_model: "gpt-6.2-sol", degraded: "fallback" } as const;
  expect(renderTurnStory({ ...story, ...fallback })).toContain(
    "model         gpt-6.1-terra, fallback from gpt-6.2-sol",
  );
  expect(renderTurnStory({ ...story, degraded: "static_answer" })).toContain(
    "model         the agent's static answer, in place of gpt-6.1-terra",
  );
});

test("a turn that nobody has started has a story too", () => {
  const waiting = { started_at: null, ended_at: null, steps: [], model_calls: [] };
  const told = renderTurnStory({ ...story, status: "queued", ...waiting });
  expect(told).toContain("waited        not started yet");
  expect(told).toContain("No step has begun.");
});

test("what is not known is no figure", () => {
  const unknown = {
    outcome: "wasted",
    certainty: "unknown",
    input_tokens: null,
    output_tokens: null,
    cost_usd: null,
  } as const;
  const told = renderTurnStory({ ...story, model_calls: [{ ...call, ...unknown }] });
  expect(told).toMatch(/model gpt-6\.1-terra +wasted +2\.0s +\? +\? +\?\n/);
  expect(told).toMatch(/wasted +1 .* 1 unknown$/);
});
