import OpenAI, { BadRequestError } from "openai";
import type { ResponseCreateParamsStreaming } from "openai/resources/responses/responses";
import { StepFailure } from "../turn/failures.ts";
import type { Item } from "../turn/items.ts";
import { readAnswer } from "./answer.ts";
import type { UpstreamEvent } from "./answer.ts";
import { openConnections } from "./connections.ts";
import { classifyFailure, requestIdOf } from "./failures.ts";
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
}

export interface ModelCallOptions {
  /** Aborting closes the socket at once; the iteration then throws the signal's reason. */
  signal: AbortSignal;
  /** The longest silence between two events. Time the caller takes for an event does not count. */
  idleTimeoutMs: number;
  /** Called with the provider's `x-request-id` as soon as the headers are there. */
  onRequestId?(id: string): void;
}

export interface ModelEndpoint {
  /**
   * Makes one call and gives its events as they come, of any type. The last one is
   * `response.completed`, `response.incomplete` or `response.failed`; after the last of these the
   * iteration throws, so that its usage can be read and its failure is not missed.
   *
   * @throws StepFailure for everything that is not a whole answer; the signal's reason when aborted.
   */
  stream(call: ModelCall, options: ModelCallOptions): AsyncIterable<UpstreamEvent>;
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

const encryptedReasoning = "reasoning.encrypted_content";

/** What a call may not carry: Turnkeeper holds the conversation, the provider holds nothing. */
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
    store: false,
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

  async *stream(call: ModelCall, options: ModelCallOptions): AsyncGenerator<UpstreamEvent> {
    const watch = watchSilence(options.signal);
    let requestId: string | undefined;
    try {
      watch.arm(this.#settings.headersTimeoutMs, "headers");
      const { data, response } = await this.#send(call, watch.signal);
      requestId = requestIdOf(response.headers);
      if (requestId !== undefined) options.onRequestId?.(requestId);
      yield* readAnswer(data, response, watch, options.idleTimeoutMs);
    } catch (error) {
      const isEcho = watch.signal.aborted && !(error instanceof StepFailure);
      const cause: unknown = isEcho ? watch.signal.reason : error;
      throw cause === options.signal.reason ? cause : this.#toStepFailure(cause, requestId);
    } finally {
      watch.end();
    }
  }

  async close(): Promise<void> {
    await this.#connections.dispatcher.destroy();
  }

  async #send(call: ModelCall, signal: AbortSignal) {
    const wantsReasoning = !this.#modelsWithoutReasoning.has(call.model);
    try {
      return await this.#post(toRequest(call, wantsReasoning), signal);
    } catch (error) {
      if (!wantsReasoning || !refusesEncryptedReasoning(error)) throw error;
      // A request that was refused as such has cost nothing, so this is no retry of a failed step.
      const answer = await this.#post(toRequest(call, false), signal);
      this.#modelsWithoutReasoning.add(call.model);
      return answer;
    }
  }

  #post(request: ResponseCreateParamsStreaming, signal: AbortSignal) {
    return this.#client.responses.create(request, { signal }).withResponse();
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
