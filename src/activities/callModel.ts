import { Context } from "@temporalio/activity";
import type { StepVerdict } from "../turn/verdict.ts";
import type { HeadStarts } from "./headStarts.ts";
import { runModelStep } from "./modelStep.ts";
import type { Parts } from "./parts.ts";
import { claimForAttempt, currentFence, retryLater } from "./stepContext.ts";

/** The `callModel` activity: one model call, from its claim to the transaction that ends the step. */
export function createCallModel(parts: Parts, headStarts: HeadStarts) {
  return async function callModel(input: { step: number }): Promise<StepVerdict> {
    const fence = currentFence(input.step);
    const { cancellationSignal } = Context.current();
    const joined = await headStarts.join(fence, cancellationSignal);
    if (joined !== null) return joined;
    const claim = await claimForAttempt(parts, fence, "model");
    if (claim.outcome === "recorded") return claim.verdict;
    if (claim.outcome === "fenced") throw retryLater("fenced");
    return await runModelStep(parts, fence, claim, cancellationSignal);
  };
}
