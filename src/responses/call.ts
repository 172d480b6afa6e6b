import OpenAI, { BadRequestError, NotFoundError } from "openai";
import type { ResponseCreateParamsStreaming } from "openai/resources/responses/responses";
import { failure, StepFailure } from "../turn/failures.ts";
import type { Item } from "../turn/items.ts";
import { readAnswer } from "./answer.ts";
import type { UpstreamEvent } from "./answer.ts";
import { holdingBack, openConnections, RequestWithheld } from "./connections.ts";
import { causes, classifyFailure, requestIdOf } from "./failures.ts";
import { toModelInput } from "./input.ts";
import { redactSecrets } from "./redaction.ts";
import { watchSilence } from "./silence.ts";

export type { UpstreamEvent } from "./answer.ts";

/** One call of `POST /responses`, always with the full input. */
export interface ModelCall {
  model: string;
  instructions: string | null;
  input: readonly Item[];
  tools: readonly unknown[];
  /** Everything else of the request (`temperature`, `text`, `reasoning`, ...), sent unchanged. */
  parameters: Record<string, unknown>;
  /** The metadata under which the provider keeps the response; `null`: it keeps nothing. */
  keepAs: Record<string, string> | null;
}

export interface ModelCallOptions {
  /** Aborting closes the socket at once; the iteration then throws the signal's reason. */
  signal: AbortSignal;
  /** The longest silence between two events. Time the caller takes for an event does not count. */
  idleTimeoutMs: number;
  /** Called with the provider's `x-request-id` as soon as the headers are there. */
  onRequestId?(id: string): void;
}

export interface PaidCallOptions extends ModelCallOptions {
  /**
   * Called when all of a request but its last byte has been written; that one leaves when this
   * resolves. What it throws is thrown by the iteration, and no provider has seen a whole request.
   */
  confirm?(): Promise<void>;
}

export interface ModelEndpoint {
  /**
   * Makes one call and gives its events as they come, of any type. The last one is
   * `response.completed`, `response.incomplete` or `response.failed`; after the last of these the
   * iteration throws, so that its usage can be read and its failure is not missed.
   *
   * @throws StepFailure for everything that is not a whole answer; the signal's reason when aborted;
   *   what `confirm` throws.
   */
  stream(call: ModelCall, options: PaidCallOptions): AsyncIterable<UpstreamEvent>;
  /**
   * The events of a kept response behind number `after`, as `stream` gives them.
   *
   * @throws as `stream`; `invalid_request` when the response can no longer be streamed, which OpenAI
   *   answers 5 minutes after it was created: then it has to be retrieved.
   */
  resume(
    responseId: string,
    after: number,
    options: ModelCallOptions,
  ): AsyncIterable<UpstreamEvent>;
  /**
   * A kept response as it is now; `null` when the provider has it no more.
   *
   * @throws StepFailure; the signal's reason when aborted.
   */
  retrieve(responseId: string, signal: AbortSignal): Promise<ProviderResponse | null>;
  /**
   * Stops a kept response that may still run, so that it costs no more. Returns it as it is then.
   *
   * @throws as `retrieve`.
   */
  cancel(responseId: string, signal: AbortSignal): Promise<ProviderResponse | null>;
  /** Closes all connections; calls that still run fail as `stream_reset`. */
  close(): Promise<void>;
}

export interface ModelEndpointSettings {
  /** With the version, such as `https://api.openai.com/v1`. */
  baseUrl: string;
  apiKey: string;
  connectTimeoutMs: number;
  /** From the request to the headers of its answer. */
  headersTimeoutMs: number;
}

/** A response of the provider's, as far as anything here reads it. */
export type ProviderResponse = Record<string, unknown>;

const encryptedReasoning = "reasoning.encrypted_content";

/** Of a request about a kept response, which no model works on. */
const askTimeoutMs = 30_000;

/** Not the caller's to set: Turnkeeper holds the conversation, and `keepAs` says what is kept. */
const ownedParameters = ["previous_response_id", "conversation", "background"];

function toRequest(call: ModelCall, wantsReasoning: boolean): ResponseCreateParamsStreaming {
  const { include, ...parameters } = call.parameters;
  for (const name of ownedParameters) delete parameters[name];
  const included = new Set(Array.isArray(include) ? (include as unknown[]) : []);
  if (wantsReasoning) included.add(encryptedReasoning);
  return {
    ...parameters,
    model: call.model,
    input: toModelInput(call.input),
    ...(call.instructions === null ? {} : { instructions: call.instructions }),
    ...(call.tools.length === 0 ? {} : { tools: call.tools }),
    ...(included.size === 0 ? {} : { include: [...included] }),
    ...(call.keepAs === null
      ? { store: false }
      : {
          store: true,
          background: true,
          metadata: { ...(parameters["metadata"] as object | undefined), ...call.keepAs },
        }),
    stream: true,
  } as unknown as ResponseCreateParamsStreaming;
}

/** OpenAI's 400 for models that do not reason; its `invalid_encrypted_content` is another matter. */
function refusesEncryptedReasoning(error: unknown): boolean {
  return (
    error instanceof BadRequestError &&
    error.code !== "invalid_encrypted_content" &&
    (error.param === "include" || /encrypted[ _]content/i.test(error.message)) &&
    /not supported|unsupported|not allowed|invalid value/i.test(error.message)
  );
}

class Endpoint implements ModelEndpoint {
  readonly #settings: ModelEndpointSettings;
  readonly #connections;
  readonly #client: OpenAI;
  /** Models that answered that they have no encrypted reasoning; remembered for the process. */
  readonly #modelsWithoutReasoning = new Set<string>();

  constructor(settings: ModelEndpointSettings) {
    this.#settings = settings;
    this.#connections = openConnections(settings);
    this.#client = new OpenAI({
      baseURL: settings.baseUrl,
      apiKey: settings.apiKey,
      // Given so that the SDK does not look for them in the environment.
      adminAPIKey: null,
      organization: null,
      project: null,
      webhookSecret: null,
      // Nothing retries inside a retry [11]; the SDK's log would show requests and answers [15].
      maxRetries: 0,
      logLevel: "off",
      timeout: settings.headersTimeoutMs,
      fetch: this.#connections.fetch,
      fetchOptions: { dispatcher: this.#connections.dispatcher as never },
    });
  }

  stream(call: ModelCall, options: PaidCallOptions): AsyncGenerator<UpstreamEvent> {
    const { confirm } = options;
    const { dispatcher } = this.#connections;
    const held = confirm === undefined ? dispatcher : holdingBack(dispatcher, confirm);
    return this.#read(
      (signal) => this.#send(call, { signal, fetchOptions: { dispatcher: held } }),
      options,
    );
  }

  resume(
    responseId: string,
    after: number,
    options: ModelCallOptions,
  ): AsyncGenerator<UpstreamEvent> {
    const query = { stream: true, starting_after: after } as const;
    return this.#read(
      (signal) => this.#client.responses.retrieve(responseId, query, { signal }).asResponse(),
      options,
    );
  }

  retrieve(responseId: string, signal: AbortSignal): Promise<ProviderResponse | null> {
    const options = { signal, timeout: askTimeoutMs };
    return this.#ask(signal, () => this.#client.responses.retrieve(responseId, {}, options));
  }

  cancel(responseId: string, signal: AbortSignal): Promise<ProviderResponse | null> {
    const options = { signal, timeout: askTimeoutMs };
    return this.#ask(signal, () => this.#client.responses.cancel(responseId, options));
  }

  async #ask(
    signal: AbortSignal,
    request: () => Promise<unknown>,
  ): Promise<ProviderResponse | null> {
    try {
      const answer = await request();
      if (typeof answer === "object" && answer !== null) return answer as ProviderResponse;
      throw new StepFailure(failure("malformed_answer"));
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (error instanceof NotFoundError) return null;
      throw this.#toStepFailure(error, undefined);
    }
  }

  async *#read(
    send: (signal: AbortSignal) => Promise<Response>,
    options: ModelCallOptions,
  ): AsyncGenerator<UpstreamEvent> {
    const watch = watchSilence(options.signal);
    let requestId: string | undefined;
    try {
      watch.arm(this.#settings.headersTimeoutMs, "headers");
      const response = await send(watch.signal);
      requestId = requestIdOf(response.headers);
      if (requestId !== undefined) options.onRequestId?.(requestId);
      yield* readAnswer(response, watch, options.idleTimeoutMs);
    } catch (error) {
      const isEcho = watch.signal.aborted && !(error instanceof StepFailure);
      const cause: unknown = isEcho ? watch.signal.reason : error;
      if (cause === options.signal.reason) throw cause;
      const withheld = causes(cause).find((inner) => inner instanceof RequestWithheld);
      throw withheld === undefined ? this.#toStepFailure(cause, requestId) : withheld.cause;
    } finally {
      watch.end();
    }
  }

  async close(): Promise<void> {
    await this.#connections.dispatcher.destroy();
  }

  async #send(call: ModelCall, options: object) {
    const wantsReasoning = !this.#modelsWithoutReasoning.has(call.model);
    try {
      return await this.#post(toRequest(call, wantsReasoning), options);
    } catch (error) {
      if (!wantsReasoning || !refusesEncryptedReasoning(error)) throw error;
      // Before the next request, which may be withheld.
      this.#modelsWithoutReasoning.add(call.model);
      // A request that was refused as such has cost nothing, so this is no retry of a failed step.
      return this.#post(toRequest(call, false), options);
    }
  }

  #post(request: ResponseCreateParamsStreaming, options: object) {
    return this.#client.responses.create(request, options).asResponse();
  }

  #toStepFailure(error: unknown, requestId: string | undefined): StepFailure {
    const known = classifyFailure(error);
    const message = redactSecrets(known.message, this.#settings.apiKey);
    const id = known.requestId ?? requestId;
    const named = { ...known, message, ...(id === undefined ? {} : { requestId: id }) };
    return new StepFailure(named, { cause: error });
  }
}

/** Opens the provider's `/responses`. Nothing is sent until the first call. */
export function openModelEndpoint(settings: ModelEndpointSettings): ModelEndpoint {
  return new Endpoint(settings);
}
