import type { Scenario } from "./scenario.ts";
import type { Point } from "./tripwire.ts";

/** A place in the way of a turn where something dies. */
export interface MatrixPoint extends Point {
  name: string;
  scenario: Scenario;
  /** What holds it: a message to a server can be lost, a stream or a tool's request goes on. */
  at: "statement" | "call" | "model" | "tool";
  /** Whether there is a workflow that can be terminated. */
  hasWorkflow: boolean;
}

const notStarted: Pick<MatrixPoint, "hasWorkflow"> = { hasWorkflow: false };

function point(
  scenario: Scenario,
  at: MatrixPoint["at"],
  what: string,
  name: string,
  over: Partial<MatrixPoint> = {},
): MatrixPoint {
  const side = "before";
  return { name, scenario, at, what, side, nth: 1, hasWorkflow: true, ...over };
}

/** A message that is held before it reaches the server, and another time when it was answered. */
function bothSides(
  scenario: Scenario,
  at: "statement" | "call",
  what: string,
  name: string,
  over: Partial<MatrixPoint> = {},
): MatrixPoint[] {
  return (["before", "after"] as const).map((side) =>
    point(scenario, at, what, `${side} ${name}`, { side, ...over }),
  );
}

const workflowTask = "RespondWorkflowTaskCompleted";
const activity = "RespondActivityTaskCompleted";

/** In the order of a turn: first those of a turn of one call, then what tools add to it. */
export const points: readonly MatrixPoint[] = [
  ...bothSides("answer", "statement", "admission", "the admission", notStarted),
  point("answer", "call", "StartWorkflowExecution", "before the start", notStarted),
  point("answer", "call", "StartWorkflowExecution", "after the start", { side: "after" }),
  ...bothSides("answer", "statement", "notification", "the offer to a worker", {
    ...notStarted,
    by: "gateway",
  }),
  point("answer", "call", workflowTask, "inside the first workflow task"),
  point("answer", "call", workflowTask, "after the first workflow task", { side: "after" }),
  ...bothSides("answer", "statement", "claim of a model step", "the claim of the model step"),
  point("answer", "model", "model call", "model call sent"),
  point("answer", "model", "first event", "first event"),
  ...bothSides("answer", "statement", "flush", "the first write of events"),
  ...bothSides("answer", "statement", "notification", "a notification of events", {
    by: "worker",
  }),
  point("answer", "model", "mid-stream", "mid-stream"),
  ...bothSides("answer", "statement", "flush", "a later write of events", { nth: 2 }),
  ...bothSides("answer", "statement", "ending of the turn", "the ending transaction"),
  ...bothSides("answer", "call", activity, "Temporal knows of the ending"),
  point("answer", "call", workflowTask, "inside the last workflow task", {
    nth: 2,
  }),
  point("answer", "call", workflowTask, "after the last workflow task", {
    side: "after",
    nth: 2,
    hasWorkflow: false,
  }),
  ...bothSides("tools", "statement", "ending of a model step", "the ending of the model step"),
  ...bothSides("tools", "call", activity, "Temporal knows of the model step"),
  point("tools", "call", workflowTask, "inside the workflow task that starts tools", {
    nth: 2,
  }),
  ...bothSides("tools", "statement", "claim of a tool step", "the claim of a tool step"),
  point("tools", "tool", "start of charge", "tool start"),
  point("tools", "tool", "end of charge", "tool end"),
  point("tools", "tool", "start of look_up", "repeatable tool start"),
  point("tools", "tool", "end of look_up", "repeatable tool end"),
  ...bothSides("tools", "statement", "ending of a tool step", "the ending of a tool step"),
  ...bothSides("tools", "call", activity, "Temporal knows of a tool", { nth: 2 }),
  ...bothSides("tools", "statement", "claim of a model step", "the claim of a later model step", {
    nth: 2,
  }),
  point("tools", "model", "mid-stream", "mid-stream after tools", { nth: 2 }),
  ...bothSides("tools", "statement", "ending of the turn", "the ending transaction after tools"),
];
