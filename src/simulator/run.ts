// One response while it is generated. It runs on its own; connections only listen to it.
import type { ResponseError } from "openai/resources/responses/responses";
import { applyUsage, countTokens, usageOf } from "./bill.ts";
import type { BilledCall } from "./bill.ts";
import { emitItems } from "./emit.ts";
import type { Emission, Emissions } from "./emit.ts";
import type { WireResponse } from "./response.ts";
import type { AnswerStep, Disturbance } from "./script.ts";

/** A piece of the stream: an SSE frame, of the event with this number. */
export interface Frame {
  text: string;
  sequence: number;
}

export interface Listener {
  frame(frame: Frame): void;
  /** No more frames will come. */
  end(): void;
}

/** What the network does to the connection that the response was asked for on. */
export type Cut = "reset" | "eof" | "silence";

export interface RunHooks {
  delta(text: string, count: number): void;
  cut(how: Cut): void;
  finished(): void;
}

export interface RunArguments {
  step: AnswerStep;
  response: WireResponse;
  billed: BilledCall;
  encryptReasoning: boolean;
  /** Keep the frames, so that a later connection can read them all. */
  keepFrames: boolean;
  hooks: RunHooks;
}

type Ending = "completed" | "failed" | "incomplete";

export class Run {
  readonly response: WireResponse;
  readonly billed: BilledCall;
  readonly frames: Frame[] = [];
  readonly startedAtMs = Date.now();
  readonly keepFrames: boolean;
  readonly #step: AnswerStep;
  readonly #encryptReasoning: boolean;
  readonly #hooks: RunHooks;
  readonly #listeners = new Set<Listener>();
  readonly #stopped = Promise.withResolvers<void>();
  #sequence = 0;
  #deltas = 0;
  #firstDeltaDueMs = 0;
  #over = false;
  #errorEvent: { code: string | null; message: string } | undefined;
  #wake = (): void => {};

  constructor({ step, response, billed, encryptReasoning, keepFrames, hooks }: RunArguments) {
    this.#step = step;
    this.response = response;
    this.billed = billed;
    this.keepFrames = keepFrames;
    this.#encryptReasoning = encryptReasoning;
    this.#hooks = hooks;
  }

  get over(): boolean {
    return this.#over;
  }

  /** The `error` event with which the response ended, if it did. */
  get errorEvent(): { code: string | null; message: string } | undefined {
    return this.#errorEvent;
  }

  /** Whoever listens now hears nothing more, not even the end. */
  mute(): void {
    this.#listeners.clear();
  }

  /** Calls the listener for every kept frame after `afterSequence` (-1: all), then as they come. */
  listen(listener: Listener, afterSequence = -1): () => void {
    for (const frame of this.frames) if (frame.sequence > afterSequence) listener.frame(frame);
    if (this.#over) listener.end();
    else this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The client of a response in the foreground is gone: nothing more is produced. */
  abort(): void {
    if (this.#over) return;
    this.billed.aborted = true;
    this.#close("aborted", "cancelled");
  }

  /** The stream of a cancelled response just ends: there is no event for it. */
  cancel(): void {
    if (!this.#over) this.#close("cancelled", "cancelled");
  }

  /** Resolves when the response is over, for whatever reason. */
  async generate(): Promise<void> {
    this.#push({ type: "response.created", response: this.response });
    if (this.response.background) {
      this.#push({ type: "response.queued", response: this.response });
      this.response.status = "in_progress";
    }
    this.#push({ type: "response.in_progress", response: this.response });
    this.#firstDeltaDueMs = performance.now() + (this.#step.options.firstDelayMs ?? 0);
    const { items } = this.#step;
    const emissions = emitItems(items, this.response, this.#encryptReasoning);
    if (!(await this.#strike(emissions))) await this.#drive(emissions);
  }

  async #drive(emissions: Emissions): Promise<void> {
    let next = emissions.next();
    while (!next.done && !this.#over) {
      const { event, delta } = next.value;
      if (delta !== undefined) {
        await this.#pace();
        if (this.#over) return;
        this.#charge(next.value);
      }
      this.#push(event);
      if (delta !== undefined) {
        this.#hooks.delta(delta, ++this.#deltas);
        if (await this.#strike(emissions)) return;
      }
      next = emissions.next();
    }
    this.#finish("completed");
  }

  /** Gates and disturbances due after the deltas so far; true if the response is over. */
  async #strike(emissions: Emissions): Promise<boolean> {
    for (const gate of [this.#step.options.pauseAfter ?? []].flat()) {
      if (gate.at === this.#deltas) await Promise.race([gate.pass(), this.#stopped.promise]);
    }
    for (const disturbance of this.#step.disturbances) {
      if (this.#over) break;
      if (disturbance.afterDeltas === this.#deltas) await this.#disturb(disturbance, emissions);
    }
    const limit = this.response.max_output_tokens ?? Infinity;
    if (!this.#over && this.billed.outputTokens >= limit) {
      this.#endIncomplete("max_output_tokens", emissions);
    }
    return this.#over;
  }

  async #disturb(disturbance: Disturbance, emissions: Emissions): Promise<void> {
    switch (disturbance.kind) {
      case "inject":
        return this.#send({ text: disturbance.frame, sequence: this.#sequence - 1 });
      case "incomplete":
        return this.#endIncomplete(disturbance.reason, emissions);
      case "failed":
        return this.#fail(disturbance.code, disturbance.message);
      case "error":
        return this.#endWithError(disturbance);
      case "reset":
      case "eof":
      case "silence":
        this.#hooks.cut(disturbance.kind);
        // In the foreground the response dies with its connection; in the background it goes on.
        if (!this.response.background) await this.#stopped.promise;
    }
  }

  #endIncomplete(
    reason: Extract<Disturbance, { kind: "incomplete" }>["reason"],
    emissions: Emissions,
  ): void {
    if (this.#deltas > 0) {
      for (let next = emissions.next(true); !next.done; next = emissions.next(true)) {
        this.#push(next.value.event);
      }
    }
    this.response.incomplete_details = { reason };
    this.#finish("incomplete");
  }

  #fail(code: ResponseError["code"], message: string): void {
    this.response.error = { code, message };
    this.#finish("failed");
  }

  #endWithError(disturbance: Extract<Disturbance, { kind: "error" }>): void {
    const { code, message, eventLine } = disturbance;
    this.billed.finalEventSent = this.#listeners.size > 0;
    this.#push({ type: "error", code, message, param: null }, eventLine);
    this.#errorEvent = { code, message };
    this.response.error = { code: "server_error", message };
    this.#close("failed", "failed");
  }

  #finish(status: Ending): void {
    if (this.#over) return;
    applyUsage(this.billed, this.#step.options.usage ?? {});
    const showUsage = status !== "failed" && !this.#step.options.omit?.includes("usage");
    this.response.usage = showUsage ? usageOf(this.billed) : null;
    this.response.status = status;
    if (status === "completed") this.response.completed_at = Math.floor(Date.now() / 1000);
    this.billed.finalEventSent = this.#listeners.size > 0;
    this.#push({ type: `response.${status}`, response: this.response });
    this.#close(status, status);
  }

  #close(billedAs: BilledCall["status"], status: WireResponse["status"] & string): void {
    this.#over = true;
    this.billed.status = billedAs;
    this.response.status = status;
    this.#stopped.resolve();
    this.#wake();
    for (const listener of this.#listeners) listener.end();
    this.#listeners.clear();
    this.#hooks.finished();
  }

  #charge({ delta = "", reasoning }: Emission): void {
    const tokens = countTokens(delta);
    this.billed.outputTokens += tokens;
    if (reasoning) this.billed.reasoningTokens += tokens;
  }

  async #pace(): Promise<void> {
    const { deltaDelayMs = 0 } = this.#step.options;
    const waitMs = this.#firstDeltaDueMs + this.#deltas * deltaDelayMs - performance.now();
    if (waitMs <= 0) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, waitMs);
    this.#wake = resolve;
    await promise;
    clearTimeout(timer);
  }

  #push(event: Emission["event"], eventLine = true): void {
    const sequence = this.#sequence++;
    if (this.#listeners.size === 0 && !this.keepFrames) return;
    const numbered = this.#step.options.omit?.includes("sequence_number")
      ? event
      : numberEvent(event, sequence);
    const data = `data: ${JSON.stringify(numbered)}\n\n`;
    this.#send({ text: eventLine ? `event: ${event.type}\n${data}` : data, sequence });
  }

  #send(frame: Frame): void {
    if (this.keepFrames) this.frames.push(frame);
    for (const listener of this.#listeners) listener.frame(frame);
  }
}

function numberEvent({ type, ...fields }: Emission["event"], sequence_number: number): object {
  return { type, sequence_number, ...fields };
}
