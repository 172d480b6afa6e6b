// The script while it is played: which step answers which call.
import { toStep } from "./script.ts";
import type {
  AnswerStep,
  HttpStep,
  ScriptStep,
  SimulatedRequest,
  SocketStep,
  Step,
} from "./script.ts";

export type ResolvedStep = AnswerStep | HttpStep | SocketStep;

export class Playback {
  readonly #fallback: Step | undefined;
  readonly #complaints: string[] = [];
  #steps: Step[] = [];

  constructor(fallback: ScriptStep | undefined) {
    this.#fallback = fallback && toStep(fallback);
  }

  push(...steps: ScriptStep[]): void {
    this.#steps.push(...steps.map(toStep));
  }

  /** Chosen at once, so that calls get steps in the order in which they come. */
  take(request: SimulatedRequest): Promise<ResolvedStep> | undefined {
    const step = this.#steps.find((one) => one.match?.(request) ?? true) ?? this.#fallback;
    if (!step) {
      this.complain(`no step for ${request.method} ${request.path} (request ${request.index})`);
      return undefined;
    }
    if (!step.repeat) this.#steps = this.#steps.filter((one) => one !== step);
    return resolveStep(step, request);
  }

  /** Remembers something that must make the test fail. */
  complain(complaint: string): void {
    this.#complaints.push(complaint);
  }

  assertConsumed(): void {
    const left = this.#steps.filter((step) => !step.repeat);
    const problems = [...this.#complaints, ...left.map((step) => `unused step: ${step.kind}`)];
    if (problems.length > 0) throw new Error(`Simulator script: ${problems.join("; ")}`);
  }
}

async function resolveStep(step: Step, request: SimulatedRequest): Promise<ResolvedStep> {
  let resolved = step;
  while (resolved.kind === "computed") resolved = await resolved.compute(request);
  return resolved;
}
