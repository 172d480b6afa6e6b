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
