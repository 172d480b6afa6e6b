import type { TurnStory } from "../gateway/turnObject.ts";
import { formatCount, formatDollars, formatDuration, formatSpan, formatTime } from "./figures.ts";
import type { Json } from "./gatewayClient.ts";
import { renderFields, renderTable } from "./table.ts";
import type { Row } from "./table.ts";

type Story = Json<TurnStory>;
type Call = Story["model_calls"][number];
type Step = Story["steps"][number];

/** Waits shorter than this are what scheduling takes. */
const shownWaitMs = 50;

/** Why the turn ended as it did, in a word or two. */
export function endOf(turn: {
  status: string;
  incomplete_reason: string | null;
  failure: { class: string } | null;
}): string {
  const reason = turn.incomplete_reason ?? turn.failure?.class;
  return reason === undefined ? turn.status : `${turn.status}: ${reason}`;
}

function modelOf({ model, original_model: original, degraded }: Story): string {
  if (degraded === "static_answer") return `the agent's static answer, in place of ${model}`;
  return original === null ? model : `${model}, fallback from ${original}`;
}

function header(story: Story): string {
  const fields: [string, string][] = [
    ["turn", story.id],
    ["status", endOf(story)],
    ["agent", `${story.agent}, version ${story.agent_version}`],
    ["model", modelOf(story)],
    ["conversation", story.conversation_id],
    ["created", `${formatTime(story.created_at)} UTC`],
    [
      "waited",
      story.started_at ? formatSpan(story.created_at, story.started_at) : "not started yet",
    ],
    ["took", formatSpan(story.started_at, story.ended_at)],
  ];
  if (story.replay_of) fields.push(["replay of", story.replay_of]);
  if (story.failure) fields.push(["failure", messageOf(story.failure)]);
  if (story.cancel_requested_at) {
    fields.push(["cancel asked", `${formatTime(story.cancel_requested_at)} UTC`]);
  }
  if (story.temporal_url) fields.push(["Temporal UI", story.temporal_url]);
  return renderFields(fields);
}

/** A failure's message, with the provider's own code where it says more than the class. */
function messageOf(failure: { class: string; code: string; message: string }): string {
  const code = failure.code === failure.class ? "" : ` (${failure.code})`;
  return `${failure.message}${code}`;
}

/** Estimated figures are marked, so that nobody takes them for the provider's. */
function figure(call: Call, text: string): string {
  return call.certainty === "estimated" ? `~${text}` : text;
}

const columns = [
  { head: "at", isFigure: true },
  { head: "step", isFigure: true },
  { head: "attempt", isFigure: true },
  { head: "what" },
  { head: "outcome" },
  { head: "took", isFigure: true },
  { head: "input", isFigure: true },
  { head: "output", isFigure: true },
  { head: "cost", isFigure: true },
];
const whatColumn = columns.findIndex(({ head }) => head === "what");

/** A row with the moment that it belongs to. */
interface Moment {
  at: string;
  rows: Row[];
}

function callMoment(story: Story, call: Call): Moment {
  const rows: Row[] = [];
  const at = formatSpan(story.created_at, call.started_at);
  if (call.waited_ms !== null && call.waited_ms >= shownWaitMs) {
    rows.push({ line: `waited ${formatDuration(call.waited_ms)}`, under: whatColumn });
  }
  const outcome = call.outcome === "open" ? "running" : (call.failure_class ?? call.outcome);
  rows.push([
    at,
    `${call.step}`,
    `${call.attempt}`,
    `model ${call.model}`,
    outcome,
    formatSpan(call.started_at, call.ended_at),
    figure(call, formatCount(call.input_tokens)),
    figure(call, formatCount(call.output_tokens)),
    figure(call, formatDollars(call.cost_usd)),
  ]);
  const { failure_class: failureClass, failure_code: code, failure_message: message } = call;
  if (failureClass !== null && message !== null) {
    const line = messageOf({ class: failureClass, code: code ?? failureClass, message });
    rows.push({ line, under: whatColumn });
  }
  return { at: call.started_at, rows };
}

function toolMoment(story: Story, step: Step): Moment {
  const isTakenOver = step.state === "finished" && step.started_at === null;
  const outcome = step.outcome ?? step.state;
  const row = [
    step.started_at === null ? "" : formatSpan(story.created_at, step.started_at),
    `${step.number}`,
    step.attempt === 0 ? "" : `${step.attempt}`,
    `tool ${step.name}`,
    isTakenOver ? `${outcome}, taken over` : outcome,
    formatSpan(step.started_at, step.finished_at ?? story.ended_at),
  ];
  return { at: step.started_at ?? (isTakenOver ? "" : "9999"), rows: [row] };
}

/** Model calls and tool calls in the order in which they began. */
function chronicle(story: Story): string {
  const calls = story.model_calls.map((call) => callMoment(story, call));
  const tools = story.steps
    .filter((step) => step.kind === "tool")
    .map((step) => toolMoment(story, step));
  const moments = [...calls, ...tools].sort((left, right) => left.at.localeCompare(right.at));
  if (moments.length === 0) return "No step has begun.";
  return renderTable(
    columns,
    moments.flatMap(({ rows }) => rows),
  );
}

/** `+`: there are calls beside it whose cost is not known; `?`: there are no others. */
function totalCost(calls: readonly Call[]): string {
  const known = calls.flatMap((call) => call.cost_usd ?? []);
  const sum = known.length === 0 ? null : known.reduce((all, cost) => all + cost, 0);
  return `${formatDollars(sum)}${sum !== null && known.length < calls.length ? "+" : ""}`;
}

/** What the calls of one outcome add up to. */
function totalRow(name: string, calls: readonly Call[]): string[] {
  const sum = (field: "input_tokens" | "cached_tokens" | "output_tokens" | "reasoning_tokens") =>
    formatCount(calls.reduce((all, call) => all + (call[field] ?? 0), 0));
  const certainty = (["exact", "estimated", "unknown"] as const).map(
    (each) => `${calls.filter((call) => call.certainty === each).length} ${each}`,
  );
  return [
    name,
    `${calls.length}`,
    sum("input_tokens"),
    sum("cached_tokens"),
    sum("output_tokens"),
    sum("reasoning_tokens"),
    totalCost(calls),
    certainty.filter((each) => !each.startsWith("0 ")).join(", "),
  ];
}

/** What was bought and what was spent in vain. */
function totals({ model_calls: calls }: Story): string {
  const heads = ["calls", "input", "cached", "output", "reasoning", "cost"];
  const columns = [
    { head: "model calls" },
    ...heads.map((head) => ({ head, isFigure: true })),
    { head: "certainty" },
  ];
  const of = (outcome: Call["outcome"]) => calls.filter((call) => call.outcome === outcome);
  const rows = (
    [
      ["used", of("used")],
      ["wasted", of("wasted")],
      ["running", of("open")],
    ] as const
  ).filter(([, some]) => some.length > 0);
  return renderTable(
    columns,
    rows.map(([name, some]) => totalRow(name, some)),
  );
}

/** The story of a turn, for people. */
export function renderTurnStory(story: Story): string {
  const parts = [header(story), chronicle(story)];
  if (story.model_calls.length > 0) parts.push(totals(story));
  return parts.join("\n\n");
}
