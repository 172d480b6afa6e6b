// What the server knows and does between two resets.
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { friendlyAnswer } from "./answers.ts";
import { PromptCache } from "./bill.ts";
import type { BilledCall } from "./bill.ts";
import { breakOff, openExchange, readJson, send, sendJson, stream } from "./exchange.ts";
import type { Exchange } from "./exchange.ts";
import { apiError } from "./fault.ts";
import { ResponseMemory } from "./memory.ts";
import { OccurrenceLog } from "./occurrences.ts";
import { withDefaults } from "./options.ts";
import type { ResolvedOptions, SimulatorOptions } from "./options.ts";
import { Playback } from "./playback.ts";
import { readRequest } from "./request.ts";
import { inputItems, newId, newResponse } from "./response.ts";
import type { RequestBody } from "./response.ts";
import { answerStored } from "./retrieve.ts";
import { Run } from "./run.ts";
import type { Cut } from "./run.ts";
import type { AnswerStep, HttpStep, SimulatedRequest } from "./script.ts";

const MAX_CACHED_INPUTS = 100_000;

export class Simulation {
  readonly bill: BilledCall[] = [];
  readonly requests: SimulatedRequest[] = [];
  readonly script: Playback;
  readonly occurrences: OccurrenceLog;
  readonly memory: ResponseMemory;
  readonly streams = new Set<Exchange>();
  /** Responses whose stream shall count as too old. */
  readonly expired = new Set<string>();
  readonly #options: ResolvedOptions;
  readonly #cache = new PromptCache(MAX_CACHED_INPUTS);
  readonly #open = new Set<Exchange>();
  readonly #runs = new Set<Run>();
  #arrived = 0;

  constructor(options: SimulatorOptions) {
    this.#options = withDefaults(options);
    const { deltaDelayMs, maxKept, mode, defaultAnswer } = this.#options;
    const friendly = (request: SimulatedRequest) => friendlyAnswer(request, { deltaDelayMs });
    this.script = new Playback(defaultAnswer ?? (mode === "friendly" ? friendly : undefined));
    this.occurrences = new OccurrenceLog(maxKept);
    this.memory = new ResponseMemory(maxKept);
  }

  /** Cuts off whatever is running. */
  stop(): void {
    for (const { outgoing } of this.#open) outgoing.destroy();
    for (const run of this.#runs) run.abort();
  }

  async handle(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const exchange = openExchange(incoming, outgoing);
    this.#open.add(exchange);
    outgoing.once("close", () => this.#open.delete(exchange));
    try {
      await this.#answer(exchange);
    } catch (error) {
      if (outgoing.destroyed) return;
      this.script.complain(String(error));
      const body = apiError(`The simulator failed: ${String(error)}`, "server_error");
      if (outgoing.headersSent) breakOff(exchange);
      else sendJson(exchange, 500, body);
    }
  }

  async #answer(exchange: Exchange): Promise<void> {
    const { incoming } = exchange;
    let body: RequestBody;
    try {
      body = ((await readJson(incoming, this.#options.maxBodyBytes)) ?? {}) as RequestBody;
    } catch (error) {
      const [status, message] =
        error instanceof RangeError
          ? [413, error.message]
          : [400, "We could not parse the JSON body of your request."];
      return sendJson(exchange, status, apiError(message));
    }
    const url = new URL(incoming.url ?? "/", "http://simulator");
    const route = `${incoming.method} ${url.pathname}`;
    const isCreate = route === "POST /v1/responses";
    const read = isCreate ? readRequest(body, this.memory) : { items: [] };
    const items = "items" in read ? read.items : [];
    const request = this.#record(exchange, body, items);
    const unauthorized = this.#checkKey(incoming.headers.authorization);
    if (isCreate) {
      const refusal = unauthorized ?? ("items" in read ? undefined : read);
      return this.#create(exchange, request, refusal);
    }
    if (unauthorized) return sendJson(exchange, unauthorized.status, unauthorized.body);
    if (route === "GET /v1/models") return sendJson(exchange, 200, this.#listModels());
    if (route === "POST /v1/responses/input_tokens") return this.#countInput(exchange, body);
    const stored = { memory: this.memory, isTooOld: (run: Run) => this.#isTooOld(run) };
    const streamed = answerStored(exchange, url, stored);
    if (streamed) this.#watch(exchange, request);
  }

  #record(
    { incoming, requestId }: Exchange,
    body: RequestBody,
    items: SimulatedRequest["items"],
  ): SimulatedRequest {
    const { method = "GET", url: path = "/", headers } = incoming;
    const index = this.#arrived++;
    const request = { index, method, path, headers, body, items, requestId };
    this.requests.push(request);
    if (this.requests.length > this.#options.maxKept) this.requests.shift();
    this.occurrences.add("request", request);
    return request;
  }

  #checkKey(authorization: string | undefined) {
    const key = authorization?.replace(/^Bearer +/, "");
    if (key && key === (this.#options.apiKey ?? key)) return undefined;
    const message = key ? "Incorrect API key provided." : "You didn't provide an API key.";
    const code = key ? "invalid_api_key" : null;
    return { status: 401, body: apiError(message, "invalid_request_error", code) };
  }

  async #create(
    exchange: Exchange,
    request: SimulatedRequest,
    refusal: { status: number; body: unknown } | undefined,
  ): Promise<void> {
    const billed = this.#openBill(request);
    this.#watchClosing(exchange, request);
    if (refusal) return this.#reject(exchange, billed, { headers: {}, ...refusal });
    const chosen = this.script.take(request);
    if (!chosen) {
      const body = apiError("The simulator's script has no step for this call.", "server_error");
      const headers = { "x-should-retry": "false" };
      return this.#reject(exchange, billed, { status: 500, body, headers });
    }
    const step = await chosen;
    if (exchange.outgoing.destroyed) return this.#abortUnanswered(billed);
    switch (step.kind) {
      case "hang":
        return void exchange.outgoing.once("close", () => this.#abortUnanswered(billed));
      case "destroy":
        this.#settle(billed, "rejected");
        return void exchange.incoming.socket.destroy();
      case "http":
        return this.#reject(exchange, billed, step);
      case "answer":
        return this.#respond(exchange, request, step, billed);
    }
  }

  #openBill({ body, requestId }: SimulatedRequest): BilledCall {
    const billed: BilledCall = {
      responseId: null,
      requestId,
      model: String(body.model ?? ""),
      status: "in_progress",
      aborted: false,
      background: body.background ?? false,
      inputTokens: 0,
      cachedTokens: 0,
      cacheWriteTokens: 0,
      outputTokens: 0,
      reasoningTokens: 0,
      finalEventSent: false,
      metadata: { ...body.metadata },
    };
    this.bill.push(billed);
    if (this.bill.length > this.#options.maxKept) this.bill.shift();
    return billed;
  }

  #settle(billed: BilledCall, status: BilledCall["status"]): void {
    billed.status = status;
    this.occurrences.add("finished", billed);
  }

  #abortUnanswered(billed: BilledCall): void {
    billed.aborted = true;
    this.#settle(billed, "aborted");
    this.occurrences.add("aborted", billed);
  }

  #reject(
    exchange: Exchange,
    billed: BilledCall,
    { status, body, headers }: Pick<HttpStep, "status" | "body" | "headers">,
  ): void {
    this.#settle(billed, "rejected");
    const isText = typeof body === "string";
    const contentType = isText ? "text/plain" : "application/json";
    const all = { "content-type": contentType, ...headers };
    send(exchange, status, isText ? body : JSON.stringify(body), all);
  }

  async #respond(
    exchange: Exchange,
    request: SimulatedRequest,
    step: AnswerStep,
    billed: BilledCall,
  ): Promise<void> {
    const { body } = request;
    const gates = [step.options.pauseAfter ?? []].flat();
    const headerGate = gates.find((gate) => gate.at === "headers");
    if (headerGate) await Promise.race([headerGate.pass(), once(exchange.outgoing, "close")]);
    if (exchange.outgoing.destroyed) return this.#abortUnanswered(billed);
    const run = this.#startRun(exchange, request, step, billed);
    if (body.stream) {
      const stop = stream(exchange, run);
      this.#watch(exchange, request);
      exchange.outgoing.once("close", stop);
    } else if (body.background) {
      sendJson(exchange, 200, run.response);
    }
    if (!body.background) exchange.outgoing.once("close", () => run.abort());
    await run.generate();
    if (!body.stream && !body.background) this.#sendWhole(exchange, run);
  }

  #startRun(
    exchange: Exchange,
    request: SimulatedRequest,
    step: AnswerStep,
    billed: BilledCall,
  ): Run {
    const { body, items } = request;
    const response = newResponse(body, step.options.id ?? newId("resp"));
    Object.assign(billed, { responseId: response.id }, this.#cache.measure(body, items));
    const run: Run = new Run({
      step,
      response,
      billed,
      encryptReasoning: body.include?.includes("reasoning.encrypted_content") ?? false,
      keepFrames: Boolean(body.background && body.stream),
      hooks: {
        delta: (text, count) =>
          this.occurrences.add("delta", { responseId: response.id, text, count }),
        cut: (how) => cutOff(exchange, run, how),
        finished: () => this.#finished(run, stored),
      },
    });
    const stored = { run, input: inputItems(body), items };
    this.#runs.add(run);
    if (response.store) this.memory.add(stored);
    return run;
  }

  #finished(run: Run, stored: Parameters<ResponseMemory["finish"]>[0]): void {
    this.#runs.delete(run);
    if (run.response.store) this.memory.finish(stored);
    this.occurrences.add("finished", run.billed);
    if (run.billed.aborted) this.occurrences.add("aborted", run.billed);
  }

  /** The answer to a call that is neither streamed nor in the background. */
  #sendWhole(exchange: Exchange, run: Run): void {
    if (run.billed.aborted || exchange.outgoing.destroyed) return;
    run.billed.finalEventSent = true;
    if (run.errorEvent) {
      const { code, message } = run.errorEvent;
      return sendJson(exchange, 500, apiError(message, "server_error", code));
    }
    sendJson(exchange, 200, run.response);
  }

  /** Counts the exchange among the open streams. */
  #watch(exchange: Exchange, request: SimulatedRequest): void {
    this.streams.add(exchange);
    exchange.outgoing.once("close", () => this.streams.delete(exchange));
    if (request.method === "GET") this.#watchClosing(exchange, request);
  }

  #watchClosing({ outgoing }: Exchange, request: SimulatedRequest): void {
    outgoing.once("close", () => this.occurrences.add("closed", request));
  }

  #isTooOld(run: Run): boolean {
    const ageMs = Date.now() - run.startedAtMs;
    return ageMs > this.#options.resumableForMs || this.expired.has(run.response.id);
  }

  #countInput(exchange: Exchange, body: RequestBody): void {
    const base = this.memory.contextOf(body.previous_response_id ?? "") ?? [];
    const { inputTokens } = new PromptCache(1).measure(body, [...base, ...inputItems(body)]);
    sendJson(exchange, 200, { object: "response.input_tokens", input_tokens: inputTokens });
  }

  #listModels() {
    const data = this.#options.models.map((id) => ({
      id,
      object: "model",
      created: 1_780_000_000,
      owned_by: "simulator",
    }));
    return { object: "list", data };
  }
}

function cutOff(exchange: Exchange, run: Run, how: Cut): void {
  run.mute();
  if (how === "silence") return;
  if (how === "eof" && exchange.outgoing.headersSent) exchange.outgoing.end();
  else breakOff(exchange);
}
