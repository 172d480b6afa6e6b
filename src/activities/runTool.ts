import { Context } from "@temporalio/activity";
import { toolOutcomeEvents } from "../events/translator.ts";
import { claimStep, finishStep } from "../store/steps.ts";
import type { Claim, Fence } from "../store/steps.ts";
import { runTool as runHandler } from "../tools/run.ts";
import { newItemId } from "../turn/ids.ts";
import type { Item } from "../turn/items.ts";
import type { Turn } from "../turn/turn.ts";
import type { StepVerdict, ToolCall } from "../turn/verdict.ts";
import type { Parts } from "./parts.ts";
import { persist } from "./persist.ts";
import { StepStopped } from "./runningTurns.ts";
import { claimToken, currentFence, keepHeartbeating, retryLater } from "./stepContext.ts";

type Claimed = Extract<Claim, { outcome: "claimed" }>;

interface ToolOutcome {
  output: string;
  isError: boolean;
}

/** What the model is told when a worker died while the tool ran and it may not run twice [8]. */
const unknownOutcome: ToolOutcome = {
  output: JSON.stringify({
    error: {
      type: "outcome_unknown",
      message:
        "The tool was started, and whether it finished is not known. Do not assume either; check, or ask the user.",
    },
  }),
  isError: true,
};

/** The `runTool` activity: one call of a server tool, journalled in its step's row [8]. */
export function createRunTool(parts: Parts) {
  return async function runTool(input: { step: number }): Promise<StepVerdict> {
    const fence = currentFence(input.step);
    const claim = await claimStep(
      parts.database,
      { fence, token: claimToken(fence), kind: "tool" },
      parts.currentRun,
    );
    if (claim.outcome === "recorded") return claim.verdict;
    if (claim.outcome === "fenced" || claim.call === null) throw retryLater("fenced");
    const stopHeartbeats = keepHeartbeating();
    const { controller: stop, release } = parts.runningTurns.register(fence.turnId);
    const { cancellationSignal } = Context.current();
    const handOver = () => stop.abort(new StepStopped("handover"));
    cancellationSignal.addEventListener("abort", handOver);
    if (claim.turn.cancelRequestedAt !== null) stop.abort(new StepStopped("cancel_requested"));
    try {
      const outcome = await callTool(parts, claim, claim.call, stop.signal);
      return await storeOutcome(parts, claim.turn, fence, claim.call, outcome);
    } finally {
      cancellationSignal.removeEventListener("abort", handOver);
      release();
      stopHeartbeats();
    }
  };
}

async function callTool(
  parts: Parts,
  claim: Claimed,
  call: ToolCall,
  signal: AbortSignal,
): Promise<ToolOutcome> {
  const { turn } = claim;
  if (claim.wasRunning && !parts.tools.get(call.name)?.repeatable) return unknownOutcome;
  const agent = await parts.agents(turn.agent, turn.agentVersion);
  const result = await runHandler(parts.tools.only(agent?.tools ?? []), {
    name: call.name,
    arguments: call.arguments,
    callId: call.callId,
    turnId: turn.id,
    project: turn.project,
    idempotencyKey: `${turn.id}/${call.callId}`,
    signal,
    maxResultBytes: turn.limits.maxToolResultBytes,
  });
  return { output: result.output, isError: result.status !== "ok" };
}

async function storeOutcome(
  parts: Parts,
  turn: Turn,
  fence: Fence,
  call: ToolCall,
  outcome: ToolOutcome,
): Promise<StepVerdict> {
  const verdict: StepVerdict = { next: "model" };
  const { events, entry } = toolOutcomeEvents(call, outcome);
  const item: Item = {
    type: "function_call_output",
    id: newItemId("function_call_output"),
    call_id: call.callId,
    output: outcome.output,
    status: "completed",
  };
  const result = { verdict, items: [item], output: [entry], calls: [], events, nextOutputIndex: 0 };
  const stored = await persist(
    () => parts.database.transaction((tx) => finishStep(tx, turn, fence, result)),
    Context.current().cancellationSignal,
  );
  if (!stored) throw retryLater("fenced");
  parts.announce();
  return verdict;
}
