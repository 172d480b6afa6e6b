import type { FastifyInstance, FastifyRequest } from "fastify";
import { Refusal } from "../turn/failures.ts";
import { maxJsonDepth } from "../turn/limits.ts";

const quote = 0x22;
const backslash = 0x5c;
const opening: ReadonlySet<number> = new Set([0x5b, 0x7b]);
const closing: ReadonlySet<number> = new Set([0x5d, 0x7d]);

/** The place after the string that begins at `start`, or the end of the text. */
function skipString(text: Buffer, start: number): number {
  let end = start;
  for (;;) {
    end = text.indexOf(quote, end + 1);
    if (end === -1) return text.length;
    let before = end - 1;
    while (text[before] === backslash) before -= 1;
    const isEscaped = (end - before) % 2 === 0;
    if (!isEscaped) return end + 1;
  }
}

/**
 * Refuses JSON text that is nested deeper than {@link maxJsonDepth} [13], before anything recursive
 * sees it.
 *
 * @throws Refusal `too_deep`.
 */
export function checkDepth(text: Buffer): void {
  let depth = 0;
  for (let at = 0; at < text.length;) {
    const byte = text[at] as number;
    if (byte === quote) {
      at = skipString(text, at);
      continue;
    }
    if (opening.has(byte)) depth += 1;
    else if (closing.has(byte)) depth -= 1;
    if (depth > maxJsonDepth) {
      throw new Refusal("too_deep", `The body is nested deeper than ${maxJsonDepth} levels.`);
    }
    at += 1;
  }
}

function decode(text: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(text);
  } catch (cause) {
    throw new Refusal("invalid_json", "The body is not valid UTF-8.", null, { cause });
  }
}

/**
 * Makes JSON the only kind of body. Keys that would poison prototypes are refused, as by Fastify's
 * own parser, which does the parsing. No body at all is `undefined`.
 */
export function parseJsonBodies(app: FastifyInstance): void {
  const parse = app.getDefaultJsonParser("error", "error");
  app.removeAllContentTypeParsers();
  app.addContentTypeParser<Buffer>(
    "application/json",
    { parseAs: "buffer" },
    (request, text, done) => {
      if (text.length === 0) {
        done(null, undefined);
        return;
      }
      try {
        checkDepth(text);
        void parse(request, decode(text), (error, value) => {
          done(error === null ? null : invalidJson(error), value);
        });
      } catch (error) {
        done(error as Error);
      }
    },
  );
}

function invalidJson(cause: Error): Refusal {
  return new Refusal("invalid_json", `The body is not usable JSON: ${cause.message}`, null, {
    cause,
  });
}

/** The request's body as an object. @throws Refusal `invalid_json` when it is something else. */
export function objectBody(request: FastifyRequest): Record<string, unknown> {
  const { body } = request;
  if (typeof body === "object" && body !== null && !Array.isArray(body)) {
    return body as Record<string, unknown>;
  }
  throw new Refusal("invalid_json", "The body must be a JSON object.");
}

/** Refuses fields of a body that a route does not know. @throws Refusal `unknown_parameter`. */
export function refuseOtherFields(body: Record<string, unknown>, known: readonly string[]): void {
  const other = Object.keys(body).find((field) => !known.includes(field));
  if (other === undefined) return;
  throw new Refusal("unknown_parameter", `There is no parameter '${other}' here.`, other);
}
