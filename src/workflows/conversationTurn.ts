import {
  ActivityFailure,
  ApplicationFailure,
  CancellationScope,
  condition,
  continueAsNew,
  defineSignal,
  setCurrentDetails,
  setHandler,
  upsertSearchAttributes,
  workflowInfo,
} from "@temporalio/workflow";
import { defineSearchAttributeKey, SearchAttributeType } from "@temporalio/common";
import { grantedSignalName, maxSummaryChars } from "../turn/engineNames.ts";
import type { DirectStart } from "../turn/directStart.ts";
import type { TerminalStatus } from "../turn/turn.ts";
import type { StepVerdict, TurnEnd } from "../turn/verdict.ts";
import * as activities from "./activityOptions.ts";
import { turns } from "./sinks.ts";

/** Where a turn that continued as new goes on. */
export interface ContinuedTurn {
  step: number;
}

/**
 * What a turn's workflow returns: all the rest is on record under its workflow id. Of a failed turn the
 * workflow fails, with the failure's class as the type of its error.
 */
export interface TurnOutcome {
  status: TerminalStatus;
}

const grantedSignal = defineSignal(grantedSignalName);

const statusKey = defineSearchAttributeKey("TurnkeeperStatus", SearchAttributeType.KEYWORD);
const modelKey = defineSearchAttributeKey("TurnkeeperModel", SearchAttributeType.KEYWORD);

/**
 * A turn whose history is longer than this goes on in a new run, between two steps [5]. That is more
 * than 64 steps, the default limit, can have; a worker that takes a run over has to replay all of it.
 */
const maxHistoryEvents = 500;

type Outcome = StepVerdict | "cancelled" | "activity_failed";

function isContinued(start: DirectStart | ContinuedTurn): start is ContinuedTurn {
  return typeof start === "object" && "step" in start;
}

/**
 * One turn. Its workflow id is the turn id. Without argument the turn is on record already; with a
 * {@link DirectStart}, from any language's Temporal SDK, the first activity puts it there.
 */
export async function conversationTurn(
  start?: DirectStart | ContinuedTurn | null,
): Promise<TurnOutcome> {
  const cancelled = cancelRequested();
  let step = 1;
  if (start !== undefined && start !== null) {
    if (isContinued(start)) step = start.step;
    else {
      const ended = await enterConversation(start, cancelled);
      if (ended !== null) return finish(ended);
    }
  }
  for (;;) {
    const outcome = await runStep(cancelled, () => callModel(step));
    if (typeof outcome === "string") return finish(await endTurn(outcome));
    if (outcome.next === "end") return finish(outcome);
    const tools = outcome.next === "tools" ? outcome.tools : [];
    const failed = await runTools(cancelled, step, tools);
    if (failed !== null) return finish(await endTurn(failed));
    if (outcome.next === "tools" && outcome.thenEnd) {
      return finish(await endTurn("calls_for_client"));
    }
    step += tools.length + 1;
    if (workflowInfo().historyLength > maxHistoryEvents) {
      // The next run would not hear of it.
      if (CancellationScope.current().consideredCancelled)
        return finish(await endTurn("cancelled"));
      await continueAsNew<typeof conversationTurn>({ step });
    }
  }
}

/** Resolves when Temporal delivers a cancel; the turn then ends in order rather than being torn. */
function cancelRequested(): Promise<"cancelled"> {
  return new Promise((resolve) => {
    CancellationScope.current().cancelRequested.catch(() => {
      turns.cancelRequested();
      resolve("cancelled");
    });
  });
}

/** Runs one step out of reach of Temporal's cancel, which its worker hears of by the record. */
async function runStep(
  cancelled: Promise<"cancelled">,
  step: () => Promise<StepVerdict>,
): Promise<Outcome> {
  if (CancellationScope.current().consideredCancelled) return "cancelled";
  const verdict = CancellationScope.nonCancellable(step).catch(() => "activity_failed" as const);
  return Promise.race([verdict, cancelled]);
}

function callModel(step: number): Promise<StepVerdict> {
  const model = workflowInfo().typedSearchAttributes.get(modelKey) ?? "the model";
  setCurrentDetails(`Step ${step}: calling ${model}.`);
  const summary = model.slice(0, maxSummaryChars);
  return activities.callModel.executeWithOptions({ summary }, [{ step }]);
}

async function runTools(
  cancelled: Promise<"cancelled">,
  modelStep: number,
  tools: readonly string[],
): Promise<"cancelled" | "activity_failed" | null> {
  if (tools.length === 0) return null;
  setCurrentDetails(`Step ${modelStep}: running ${tools.join(", ")}.`);
  const outcomes = await Promise.all(
    tools.map((name, at) =>
      runStep(cancelled, () =>
        activities.runTool.executeWithOptions({ summary: name }, [{ step: modelStep + at + 1 }]),
      ),
    ),
  );
  return outcomes.find((outcome) => typeof outcome === "string") ?? null;
}

function endTurn(reason: "cancelled" | "activity_failed" | "calls_for_client"): Promise<TurnEnd> {
  setCurrentDetails(`Ending the turn: ${reason}.`);
  return CancellationScope.nonCancellable(() => activities.endTurn({ reason })).catch(
    failAsRefused,
  );
}

/** Puts a directly started turn on record and waits until it holds its conversation. */
async function enterConversation(
  start: DirectStart,
  cancelled: Promise<"cancelled">,
): Promise<TurnEnd | null> {
  let isGranted = false;
  setHandler(grantedSignal, () => {
    isGranted = true;
  });
  setCurrentDetails("Admitting the turn.");
  // A cancel must not leave a turn behind that is on record and that nobody runs.
  const admitted = await CancellationScope.nonCancellable(() => activities.admitTurn(start)).catch(
    failAsRefused,
  );
  if (admitted.state === "ended") return admitted;
  if (admitted.state === "admitted") return null;
  setCurrentDetails("Waiting for the conversation.");
  const scope = new CancellationScope();
  const waited = scope
    .run(() => Promise.race([activities.awaitGrant(), condition(() => isGranted)]))
    // It waits as long as it takes, so only a cancel can make it fail.
    .then(
      () => "granted" as const,
      () => cancelled,
    );
  const outcome = await Promise.race([waited, cancelled]);
  scope.cancel();
  return outcome === "cancelled" ? endTurn("cancelled") : null;
}

/** A refused request fails the workflow with the refusal's code as the type of its failure. */
function failAsRefused(error: unknown): never {
  throw error instanceof ActivityFailure && error.cause !== undefined ? error.cause : error;
}

/** Closes the workflow as the turn has ended: a failed turn is a failed workflow. */
function finish({ status, failureClass }: TurnEnd): TurnOutcome {
  setCurrentDetails(`The turn is ${status}.`);
  // Only where the start could set it: the namespace may not have registered the attribute.
  if (workflowInfo().typedSearchAttributes.get(statusKey) !== undefined) {
    upsertSearchAttributes([{ key: statusKey, value: status }]);
  }
  if (failureClass !== undefined) {
    const failed = ApplicationFailure.nonRetryable("The turn has failed.", failureClass);
    // History keeps classes, no stacks [5].
    failed.stack = "";
    throw failed;
  }
  return { status };
}
