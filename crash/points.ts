import type { Policy } from "./cells.ts";
import type { StatementMoment } from "./proxies/statements.ts";
import type { Scenario } from "./scenario.ts";
import { scenarios } from "./scenarios.ts";
import type { Point } from "./tripwire.ts";

/** A place in the way of a turn where something dies. */
export interface MatrixPoint extends Point {
  name: string;
  scenario: Scenario;
  /** What holds it: a message to a server can be lost, a stream or a tool's request goes on. */
  at: "statement" | "call" | "model" | "tool";
  /** Whether there is a workflow that can be terminated. */
  hasWorkflow: boolean;
  /** The turn of its cell, from 1, with which the moments begin to count. */
  turn: number;
  /** With which agents it comes about. */
  policies: readonly Policy[];
}

type Over = Partial<MatrixPoint>;
type Place = [at: "statement" | "call", what: string];

const notStarted: Over = { hasWorkflow: false };
const ofSecondTurn: Over = { turn: 2 };
const later: Over = { nth: 2 };
const inBackground: Over = { policies: ["background"] };
const byWorker: Over = { by: "worker" };
const byGateway: Over = { by: "gateway" };
const notStartedByGateway: Over = { ...notStarted, ...byGateway };
const secondByGateway: Over = { ...ofSecondTurn, ...byGateway };

const write = (what: StatementMoment): Place => ["statement", what];
const start: Place = ["call", "StartWorkflowExecution"];
const activityEnd: Place = ["call", "RespondActivityTaskCompleted"];
const activityFailure: Place = ["call", "RespondActivityTaskFailed"];
const workflowTask = "RespondWorkflowTaskCompleted";

function point(
  scenario: Scenario,
  at: MatrixPoint["at"],
  what: string,
  name: string,
  over: Over = {},
): MatrixPoint {
  return {
    name,
    scenario,
    at,
    what,
    side: "before",
    nth: 1,
    hasWorkflow: scenario.isAlone,
    turn: 1,
    policies: ["foreground", "background"],
    ...over,
  };
}

/** A message that is held before it reaches the server, and another time when it was answered. */
function bothSides(scenario: Scenario, [at, what]: Place, name: string, over: Over = {}) {
  return (["before", "after"] as const).map((side) =>
    point(scenario, at, what, `${side} ${name}`, { side, ...over }),
  );
}

const { answer, served, tools, fallback, gone, cancelled, left, queued, direct, client } =
  scenarios;

/** In the order of a turn: of a turn of one call. */
const ofOneCall: readonly MatrixPoint[] = [
  ...bothSides(answer, write("admission"), "the admission", notStartedByGateway),
  point(answer, ...start, "before the start", notStartedByGateway),
  point(answer, ...start, "after the start", { ...byGateway, side: "after" }),
  ...bothSides(answer, write("notification"), "the offer to a worker", notStartedByGateway),
  point(answer, "call", workflowTask, "inside the first workflow task"),
  point(answer, "call", workflowTask, "after the first workflow task", { side: "after" }),
  ...bothSides(answer, write("claim of a model step"), "the claim of the model step"),
  point(answer, "model", "model call", "model call sent"),
  point(answer, "model", "first event", "first event"),
  ...bothSides(answer, write("flush"), "the first write of events"),
  ...bothSides(answer, write("notification"), "a notification of events", byWorker),
  point(answer, "model", "mid-stream", "mid-stream"),
  ...bothSides(answer, write("flush"), "a later write of events", later),
  ...bothSides(answer, write("ending of the turn"), "the ending transaction"),
  ...bothSides(answer, activityEnd, "Temporal knows of the ending"),
  point(answer, "call", workflowTask, "inside the last workflow task", later),
  point(answer, "call", workflowTask, "after the last workflow task", {
    ...later,
    ...notStarted,
    side: "after",
  }),
];

/** What tools add to it. */
const ofTools: readonly MatrixPoint[] = [
  ...bothSides(tools, write("ending of a model step"), "the ending of the model step"),
  ...bothSides(tools, activityEnd, "Temporal knows of the model step"),
  point(tools, "call", workflowTask, "inside the workflow task that starts tools", later),
  ...bothSides(tools, write("claim of a tool step"), "the claim of a tool step"),
  point(tools, "tool", "start of charge", "tool start"),
  point(tools, "tool", "end of charge", "tool end"),
  point(tools, "tool", "start of look_up", "repeatable tool start"),
  point(tools, "tool", "end of look_up", "repeatable tool end"),
  ...bothSides(tools, write("ending of a tool step"), "the ending of a tool step"),
  ...bothSides(tools, activityEnd, "Temporal knows of a tool", later),
  ...bothSides(tools, write("claim of a model step"), "the claim of a later model step", later),
  point(tools, "model", "mid-stream", "mid-stream after tools", later),
  ...bothSides(tools, write("ending of the turn"), "the ending transaction after tools"),
];

/** What a worker and a gateway in one process do otherwise. */
const ofServe: readonly MatrixPoint[] = [
  ...bothSides(served, write("admission"), "the admission in serve", notStarted),
  ...bothSides(served, start, "the start in serve", notStarted),
  ...bothSides(served, write("claim of a model step"), "the head start in serve", notStarted),
  ...bothSides(served, write("adoption"), "the adoption of the head start"),
  point(served, "model", "mid-stream", "mid-stream in serve"),
  ...bothSides(served, write("ending of the turn"), "the ending transaction in serve"),
  ...bothSides(served, activityEnd, "Temporal knows of the ending in serve"),
];

/** What failures of the model add. */
const ofFailures: readonly MatrixPoint[] = [
  ...bothSides(fallback, write("call given up"), "a failed call is given up"),
  ...bothSides(fallback, write("head start postponed"), "the failed head start is postponed"),
  ...bothSides(fallback, activityFailure, "Temporal knows of the failure"),
  ...bothSides(fallback, write("head start given up"), "the failed head start is given up"),
  ...bothSides(fallback, write("claim of a model step"), "the step is taken again", later),
  ...bothSides(fallback, write("change of the model"), "the model is changed"),
  point(fallback, "model", "mid-stream", "mid-stream of another model"),
  ...bothSides(fallback, write("ending of the turn"), "the ending after a fallback"),
  ...bothSides(scenarios.static, write("change of the model"), "the static answer is chosen"),
  ...bothSides(scenarios.static, write("call dropped"), "the row of no call is dropped"),
  ...bothSides(scenarios.static, write("ending of the turn"), "the ending with a static answer"),
  ...bothSides(gone, write("response replaced"), "a lost response is replaced", inBackground),
];

const inTemporal = scenarios["cancelled in Temporal"];

/** What ends a turn early, or takes it from its users. */
const ofCancels: readonly MatrixPoint[] = [
  ...bothSides(cancelled, write("cancel"), "the cancel", byGateway),
  ...bothSides(cancelled, write("notification"), "the worker hears of the cancel", {
    ...byGateway,
    ...later,
  }),
  ...bothSides(cancelled, write("call given up"), "the cancelled call is given up"),
  ...bothSides(cancelled, write("ending of the turn"), "the ending of a cancelled turn"),
  ...bothSides(
    cancelled,
    ["call", "RequestCancelWorkflowExecution"],
    "Temporal's cancel",
    byGateway,
  ),
  ...bothSides(
    scenarios["cancelled late"],
    write("cost of a cancelled response"),
    "the cost of a cancelled response",
    inBackground,
  ),
  ...bothSides(inTemporal, write("cancel"), "the cancel of a workflow"),
  ...bothSides(inTemporal, write("ending of the turn"), "the ending of a cancelled workflow"),
  ...bothSides(left, write("time to cancel"), "everybody has left", byGateway),
  ...bothSides(left, write("ending of the turn"), "the ending of a turn that all have left"),
  ...bothSides(
    scenarios.interrupted,
    write("admission"),
    "the admission that interrupts",
    secondByGateway,
  ),
];

const directlyQueued = scenarios["direct, queued"];

/** What a second turn adds. */
const ofSecondTurns: readonly MatrixPoint[] = [
  ...bothSides(queued, write("admission"), "the admission to the queue", secondByGateway),
  ...bothSides(queued, write("ending of the turn"), "the ending that grants"),
  ...bothSides(queued, start, "the start of a granted turn", { ...ofSecondTurn, ...byWorker }),
  ...bothSides(queued, write("claim of a model step"), "the claim of a granted turn", ofSecondTurn),
  ...bothSides(client, write("ending of the turn"), "the ending with a call"),
  ...bothSides(client, activityEnd, "Temporal knows of the ending with a call", {
    nth: 3,
  }),
  ...bothSides(client, write("admission"), "the admission of an output", secondByGateway),
  ...bothSides(
    scenarios.replayed,
    write("admission"),
    "the admission of a replay",
    secondByGateway,
  ),
  ...bothSides(
    scenarios.replayed,
    write("claim of a finished step"),
    "the claim of a finished step",
    ofSecondTurn,
  ),
  ...bothSides(
    scenarios.replayed,
    write("claim of a model step"),
    "the claim behind finished steps",
    ofSecondTurn,
  ),
];

/** What a start in Temporal does otherwise. */
const ofDirectStarts: readonly MatrixPoint[] = [
  ...bothSides(direct, write("admission"), "the admission by an activity"),
  ...bothSides(direct, activityEnd, "Temporal knows of the admission"),
  ...bothSides(direct, write("claim of a model step"), "the claim without a head start"),
  ...bothSides(directlyQueued, write("admission"), "the admission to the queue by an activity", {
    ...ofSecondTurn,
  }),
  ...bothSides(
    directlyQueued,
    ["call", "SignalWorkflowExecution"],
    "the workflow hears of the grant",
    ofSecondTurn,
  ),
];

export const points: readonly MatrixPoint[] = [
  ...ofOneCall,
  ...ofTools,
  ...ofServe,
  ...ofFailures,
  ...ofCancels,
  ...ofSecondTurns,
  ...ofDirectStarts,
];
