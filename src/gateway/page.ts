import type { FastifyInstance } from "fastify";
import { Refusal } from "../turn/failures.ts";

/** The query of lists, as the OpenAI API has it. */
export const pageQuery = {
  limit: { type: "integer", minimum: 1, maximum: 100, default: 20 },
  order: { type: "string", enum: ["asc", "desc"], default: "desc" },
  after: { type: "string" },
} as const;

export interface PageQuery {
  limit: number;
  order: "asc" | "desc";
  after?: string;
}

/** What to add to an answer; all that Turnkeeper has is in it anyway. */
export const includeQuery = {
  include: { type: "array", items: { type: "string" } },
  // The form in which the openai package writes lists into a query.
  "include[]": { type: "array", items: { type: "string" } },
} as const;

/** A query schema that knows these parameters and no others. */
export function querySchema(properties: Record<string, object>): object {
  return { querystring: { type: "object", properties, additionalProperties: false } };
}

/** The schema of a route that names none: it has no query parameters. */
export function refuseQueriesByDefault(app: FastifyInstance): void {
  app.addHook("onRoute", (route) => {
    route.schema = { ...querySchema({}), ...route.schema };
  });
}

/** A list object of the OpenAI API, made of one element more than the page has, if there are more. */
export function listObject<Element extends { id: string }>(elements: Element[], limit: number) {
  const data = elements.slice(0, limit);
  return {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: elements.length > limit,
  };
}

/** A time in a query: ISO 8601, or seconds since 1970. */
export function timeOf(value: string | undefined, param: string): Date | undefined {
  if (value === undefined) return undefined;
  const isSeconds = /^\d+(\.\d+)?$/.test(value);
  const isIso = /^\d{4}-\d\d-\d\d([T ]|$)/.test(value);
  const time = new Date(isSeconds ? Number(value) * 1000 : isIso ? value : Number.NaN);
  if (!Number.isNaN(time.getTime())) return time;
  throw new Refusal("invalid_value", `'${param}' must be an ISO 8601 time or Unix seconds.`, param);
}
