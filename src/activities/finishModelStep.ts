import type { ModelOutput } from "../events/translator.ts";
import type { Ending } from "../store/endings.ts";
import { dropModelCall } from "../store/modelCalls.ts";
import type { StepResult } from "../store/steps.ts";
import { notRunOutput } from "../turn/budget.ts";
import { toolOutcome } from "../turn/serverCalls.ts";
import type { StepVerdict } from "../turn/verdict.ts";
import { asksClient } from "./callOwners.ts";
import { finishStep } from "./finishStep.ts";
import { finishTurn } from "./finishTurn.ts";
import type { ModelAnswer, ModelStep } from "./streamModel.ts";

/** Ends the step: with tools to run, with a last call because of a limit, or with the turn. */
export async function finishModelStep(step: ModelStep, whole: ModelAnswer): Promise<StepVerdict> {
  const { parts, turn, fence, ledger, limit } = step;
  const { output, end } = whole;
  ledger.outcome = "used";
  if (!step.isSent) await dropModelCall(parts.database, ledger.id);
  const modelCall = step.isSent ? ledger : null;
  const asks = end.status === "completed" && output.calls.length > 0 && limit === null;
  const goesOn = asks && !isOverSteps(step, output);
  if (asks && !goesOn) leaveCallsUndone(step, output);
  const verdict = asks ? toolsVerdict(step, output, goesOn) : endVerdict(step, whole);
  const result: StepResult = {
    verdict,
    items: output.items,
    output: output.output,
    calls: goesOn ? output.calls : [],
    events: await step.writer.drain(step.takenBack),
    nextOutputIndex: output.nextOutputIndex,
  };
  const finished = { fence, result, modelCall };
  if (asks) return finishStep(parts, turn, finished, step.stop.signal);
  const reason = limit ?? end.reason;
  const ending: Ending =
    reason === null ? { status: "completed" } : { status: "incomplete", incompleteReason: reason };
  return finishTurn(parts, turn, ending, { lastStep: finished }, step.stop.signal);
}

/** Whether the turn may not run these calls and call the model once more after them [13]. */
function isOverSteps({ fence, turn }: ModelStep, { calls }: ModelOutput): boolean {
  const { maxCallsPerStep, maxSteps } = turn.limits;
  return calls.length > maxCallsPerStep || fence.step + calls.length >= maxSteps;
}

/** Answers the calls that a limit forbids, so that the model's last call finds every pair whole [9]. */
function leaveCallsUndone(step: ModelStep, output: ModelOutput): void {
  for (const call of output.calls) {
    const undone = toolOutcome(call, { output: notRunOutput, isError: true });
    for (const event of undone.events) step.writer.append(event, output.nextOutputIndex);
    output.output.push(undone.entry);
    output.items.push(undone.answer);
  }
}

function toolsVerdict(step: ModelStep, output: ModelOutput, goesOn: boolean): StepVerdict {
  if (!goesOn) return { next: "tools", tools: [], thenEnd: false, limit: "step_limit" };
  // The model may have written anything for a name; history and columns get those that are known.
  const nameOf = (name: string) => step.parts.tools.get(name)?.name ?? "unknown tool";
  return {
    next: "tools",
    tools: output.calls.map((call) => nameOf(call.name)),
    thenEnd: asksClient(output),
  };
}

function endVerdict({ limit }: ModelStep, { end }: ModelAnswer): StepVerdict {
  return { next: "end", status: limit === null ? end.status : "incomplete" };
}
