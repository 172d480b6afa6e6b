import type { Config } from "../config.ts";
import type { ErrorBody } from "../gateway/errors.ts";

/** A value as it is after its way through JSON: times are ISO 8601 text. */
export type Json<Value> = Value extends Date
  ? string
  : Value extends object
    ? { [Field in keyof Value]: Json<Value[Field]> }
    : Value;

/** The gateway did not do what a command asked; the message says why and what to do. */
export class GatewayRefused extends Error {
  override name = "GatewayRefused";
}

/** Generous: the slowest answer is that of a gateway whose database is slow. */
const answerTimeoutMs = 60_000;
const unauthorized = 401;

/** What a command asks a gateway, over HTTP and with the key of its project. */
export class GatewayClient {
  readonly #url: string;
  readonly #apiKey: string | null;

  constructor(config: Pick<Config, "gatewayUrl" | "gatewayApiKey">) {
    this.#url = config.gatewayUrl.replace(/\/+$/, "");
    this.#apiKey = config.gatewayApiKey;
  }

  /**
   * Asks for JSON. Query parameters that are undefined are left out.
   *
   * @throws GatewayRefused for everything but an answer of status 2xx.
   */
  async get<Answer>(
    path: string,
    query: Readonly<Record<string, string | number | undefined>> = {},
  ): Promise<Json<Answer>> {
    const search = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined) search.set(name, String(value));
    }
    return this.#ask("GET", search.size === 0 ? path : `${path}?${search.toString()}`);
  }

  /** Like {@link get}, with a body to send. */
  async post<Answer>(path: string, body: unknown, idempotencyKey?: string): Promise<Json<Answer>> {
    return this.#ask("POST", path, body, idempotencyKey);
  }

  async #ask<Answer>(
    method: string,
    path: string,
    body?: unknown,
    idempotencyKey?: string,
  ): Promise<Json<Answer>> {
    const response = await fetch(`${this.#url}${path}`, {
      method,
      headers: {
        ...(this.#apiKey === null ? {} : { authorization: `Bearer ${this.#apiKey}` }),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(answerTimeoutMs),
    }).catch((error: unknown) => {
      throw this.#unreachable(error);
    });
    const answer = (await response.json().catch(() => null)) as Json<Answer> | ErrorBody | null;
    if (response.ok && answer !== null) return answer as Json<Answer>;
    throw this.#refused(response.status, answer as ErrorBody | null);
  }

  #unreachable(error: unknown): GatewayRefused {
    const { cause, message } = error as Error & { cause?: { code?: string; message?: string } };
    const reason = cause?.code ?? cause?.message ?? message;
    return new GatewayRefused(
      `No gateway answers at ${this.#url} (${reason}). Start one with 'turnkeeper serve' or 'npm start', or name another with --url or TURNKEEPER_URL.`,
      { cause: error },
    );
  }

  #refused(status: number, body: ErrorBody | null): GatewayRefused {
    const error = body?.error;
    if (typeof error?.code !== "string") {
      return new GatewayRefused(
        `What answers at ${this.#url} (status ${status}) is no Turnkeeper gateway; name another with --url or TURNKEEPER_URL.`,
      );
    }
    if (status === unauthorized) {
      const problem = this.#apiKey === null ? "needs an API key" : "does not take this API key";
      return new GatewayRefused(
        `The gateway at ${this.#url} ${problem}: set TURNKEEPER_API_KEY to one that 'turnkeeper key create' has made.`,
      );
    }
    return new GatewayRefused(`${error.message} (${error.code})`);
  }
}
