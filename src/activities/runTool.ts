import { Context } from "@temporalio/activity";
import { findEffect } from "../store/replays.ts";
import { releaseStep } from "../store/steps.ts";
import type { Claim, JournalledCall } from "../store/claims.ts";
import type { Fence } from "../store/fence.ts";
import type { ToolRegistry } from "../tools/registry.ts";
import { runTool as runHandler, toolErrorOutput } from "../tools/run.ts";
import type { ToolResult } from "../tools/run.ts";
import { lastWordAt } from "../turn/budget.ts";
import { toolOutcome } from "../turn/serverCalls.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict, ToolCall } from "../turn/verdict.ts";
import { finishStep } from "./finishStep.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import type { StepStopped } from "./runningTurns.ts";
import {
  claimForAttempt,
  currentFence,
  linkStops,
  retryLater,
  tryElsewhere,
} from "./stepContext.ts";

type Claimed = Extract<Claim, { outcome: "claimed" }>;

/** What the model is told when a worker died while the tool ran and it may not run twice [8]. */
const unknownOutcome: ToolResult = {
  outcome: "unknown",
  output: toolErrorOutput(
    "outcome_unknown",
    "The tool was started, and whether it finished is not known. Do not assume either; check, or ask the user.",
  ),
};

/** What the model is told when no worker that has the tool came in time. */
const notFound: ToolResult = {
  outcome: "not_run",
  output: toolErrorOutput("not_run", "The call was not run: the tool is not available now."),
};

/** What the model is told in a replay that has no effects of its own. */
const notRun: ToolResult = {
  outcome: "not_run",
  output: toolErrorOutput(
    "not_run",
    "The call was not run: this is a replay of an earlier turn, in which it was not made. Go on without its result, and say what is missing.",
  ),
};

/** The `runTool` activity: one call of a server tool, journalled in its step's row [8]. */
export function createRunTool(parts: Parts) {
  return async function runTool(input: { step: number }): Promise<StepVerdict> {
    const fence = currentFence(input.step);
    const claim = await claimForAttempt(parts, fence, "tool");
    if (claim.outcome === "recorded") return claim.verdict;
    if (claim.outcome === "fenced" || claim.call === null) throw retryLater("fenced");
    const result = await runClaimed(parts, fence, claim, claim.call);
    return await storeOutcome(parts, claim.turn, fence, claim.call, result);
  };
}

async function runClaimed(
  parts: Parts,
  fence: Fence,
  claim: Claimed,
  call: JournalledCall,
): Promise<ToolResult> {
  const { turn } = claim;
  // A database that is away for a moment must not look like a tool that began and died [8].
  const { cancellationSignal: signal } = Context.current();
  const agent = await persist(() => parts.agents(turn.agent, turn.agentVersion), signal);
  const tools = parts.tools.only(
    (agent?.tools ?? []).filter((name) => parts.tools.get(name) !== undefined),
  );
  const tool = tools.get(call.name);
  if (tool === undefined && agent?.tools.includes(call.name)) {
    if (Date.now() >= lastWordAt(turn).getTime()) {
      return claim.wasRunning ? unknownOutcome : notFound;
    }
    // Of a step that an earlier attempt began nobody knows more than before.
    if (!claim.wasRunning) await persist(() => releaseStep(parts.database, fence), signal);
    throw tryElsewhere(parts, turn, call.name, fence.attempt);
  }
  const replayed =
    tool === undefined
      ? null
      : await persist(() => replayCall(parts, turn, call.effectKey, tool.repeatable), signal);
  if (replayed !== null) return replayed;
  // A tool that takes its worker down each time must not take down every worker.
  const mayRepeat = tool?.repeatable && fence.attempt <= turn.limits.maxAttemptsPerStep;
  if (claim.wasRunning && tool !== undefined && !mayRepeat) return unknownOutcome;
  const { controller: stop, release } = parts.runningTurns.register(fence.turnId);
  const temporal = parts.temporalWatch.watch(turn.id);
  const takenBack = AbortSignal.any([signal, temporal.signal]);
  const unlink = linkStops(stop, turn, takenBack, lastWordAt(turn));
  try {
    const result = await callTool(tools, turn, call, stop.signal);
    // This attempt was stopped before it began; the one before it may have begun.
    if (result.outcome === "not_run" && claim.wasRunning && stop.signal.aborted) {
      return unknownOutcome;
    }
    const isHandedOver = (stop.signal.reason as StepStopped | undefined)?.reason === "handover";
    if (isHandedOver && result.outcome !== "ok" && tool?.repeatable)
      throw retryLater("handover", 0);
    return result;
  } finally {
    unlink();
    temporal.release();
    release();
  }
}

/**
 * What a replay answers a call with instead of running its tool [8]; `null` where the tool is to run.
 */
async function replayCall(
  parts: Parts,
  turn: Turn,
  effectKey: string,
  isRepeatable: boolean,
): Promise<ToolResult | null> {
  if (turn.replay === null || turn.replay.effects === "all") return null;
  const recorded = await findEffect(parts.database, turn, effectKey);
  if (recorded !== null) {
    if (recorded.output !== null) return { outcome: recorded.outcome, output: recorded.output };
    return isRepeatable ? null : unknownOutcome;
  }
  return isRepeatable || turn.replay.effects === "new" ? null : notRun;
}

function callTool(
  tools: ToolRegistry,
  turn: Turn,
  call: JournalledCall,
  signal: AbortSignal,
): Promise<ToolResult> {
  return runHandler(tools, {
    name: call.name,
    arguments: call.arguments,
    callId: call.callId,
    turnId: turn.id,
    project: turn.project,
    // Call ids are the provider's, of any length and characters; this one may stand in a header.
    idempotencyKey: call.effectKey,
    signal,
    maxResultBytes: turn.limits.maxToolResultBytes,
  });
}

async function storeOutcome(
  parts: Parts,
  turn: Turn,
  fence: Fence,
  call: ToolCall,
  { outcome, output }: ToolResult,
): Promise<StepVerdict> {
  const verdict: StepVerdict = { next: "model" };
  const isError = outcome !== "ok";
  const { events, entry, answer } = toolOutcome(call, { output, isError });
  const result = {
    verdict,
    items: [answer],
    output: [entry],
    calls: [],
    outcome,
    events,
    nextOutputIndex: 0,
  };
  const finished = { fence, result, modelCall: null };
  return finishStep(parts, turn, finished, Context.current().cancellationSignal);
}
