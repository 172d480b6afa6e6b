// A value that fits a JSON schema, with what a message says where it says something.

export interface Schema {
  [keyword: string]: unknown;
  type?: string | string[];
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
}

/** Past this depth lists stay empty, so that recursive schemas end. */
const MAX_LIST_DEPTH = 4;
/** A schema that requires itself has no finite instance. */
const MAX_DEPTH = 32;

/** What a message offers: its numbers, its quoted strings, the words after "in", "for" and so on. */
export interface Hints {
  message: string;
  numbers: number[];
  strings: string[];
}

export function readHints(message: string): Hints {
  const quoted = [...message.matchAll(/["“'`]([^"”'`]+)["”'`](?!\w)/g)].map((match) => match[1]!);
  const phrase =
    /\b(?:in|for|of|about|from|at|on|named|called|to)\s+(?:the\s+)?([^?.!,;"]+?)(?=\s+(?:in|for|of|about|from|at|on|to|and|with)\s|[?.!,;"]|$)/gi;
  const phrases = [...message.matchAll(phrase)].map((match) => match[1]!.trim());
  const numbers = (message.match(/-?\d+(?:\.\d+)?/g) ?? []).map(Number);
  return { message, numbers, strings: [...quoted, ...phrases] };
}

/** Takes hints in the order of the schema's properties. Patterns are not followed. */
export function instanceOf(schema: Schema, hints: Hints, root = schema, depth = 0): unknown {
  if (depth > MAX_DEPTH) return null;
  const next = (inner: Schema) => instanceOf(inner, hints, root, depth + 1);
  if (typeof schema["$ref"] === "string") return next(resolveRef(schema["$ref"], root));
  if ("const" in schema) return schema["const"];
  if (Array.isArray(schema["enum"])) return pickEnum(schema["enum"], hints);
  const choices = (schema["anyOf"] ?? schema["oneOf"]) as Schema[] | undefined;
  if (choices) return next(choices.find((one) => one.type !== "null") ?? choices[0] ?? {});
  if (Array.isArray(schema["allOf"])) return next(Object.assign({}, schema, ...allOf(schema)));
  switch (typeOf(schema)) {
    case "object":
      return objectOf(schema, next);
    case "array":
      return listOf(schema, depth, next);
    case "number":
    case "integer":
      return numberOf(schema, hints);
    case "boolean":
      return !/\b(no|not|false|off)\b/i.test(hints.message);
    case "null":
      return null;
    default:
      return stringOf(schema, hints);
  }
}

function allOf(schema: Schema): Schema[] {
  return [...(schema["allOf"] as Schema[]), { allOf: undefined }];
}

function typeOf(schema: Schema): string {
  const types = [schema.type ?? (schema.properties ? "object" : "string")].flat();
  return types.find((type) => type !== "null") ?? "null";
}

function resolveRef(ref: string, root: Schema): Schema {
  let at: unknown = root;
  for (const key of ref.split("/").slice(1)) at = (at as Record<string, unknown>)?.[key];
  return (at ?? {}) as Schema;
}

function pickEnum(values: readonly unknown[], { message }: Hints): unknown {
  const lower = message.toLowerCase();
  return values.find((value) => lower.includes(String(value).toLowerCase())) ?? values[0];
}

function objectOf(schema: Schema, next: (inner: Schema) => unknown): object {
  const required = new Set(schema.required ?? []);
  const properties = Object.entries(schema.properties ?? {}).filter(([name]) => required.has(name));
  return Object.fromEntries(properties.map(([name, inner]) => [name, next(inner)]));
}

function listOf(schema: Schema, depth: number, next: (inner: Schema) => unknown): unknown[] {
  const least = Number(schema["minItems"] ?? 0);
  const length = depth >= MAX_LIST_DEPTH ? least : Math.max(least, 1);
  return Array.from({ length }, () => next(schema.items ?? {}));
}

function numberOf(schema: Schema, { numbers }: Hints): number {
  const aboveMin = Number(schema["exclusiveMinimum"] ?? -Infinity) + 1;
  const least = Math.max(Number(schema["minimum"] ?? -Infinity), aboveMin);
  const belowMax = Number(schema["exclusiveMaximum"] ?? Infinity) - 1;
  const most = Math.min(Number(schema["maximum"] ?? Infinity), belowMax);
  const value = Math.min(Math.max(numbers.shift() ?? 1, least), most);
  const step = Number(schema["multipleOf"] ?? (typeOf(schema) === "integer" ? 1 : 0));
  if (step <= 0) return value;
  const above = Math.ceil(value / step) * step;
  return above <= most ? above : Math.floor(value / step) * step;
}

const FORMATS: Record<string, () => string> = {
  "date-time": () => new Date().toISOString(),
  date: () => new Date().toISOString().slice(0, 10),
  time: () => new Date().toISOString().slice(11),
  email: () => "someone@example.com",
  uri: () => "https://example.com/",
  uuid: () => "00000000-0000-4000-8000-000000000000",
};

function stringOf(schema: Schema, hints: Hints): string {
  const format = FORMATS[String(schema["format"])];
  if (format) return format();
  const value = hints.strings.shift() ?? hints.message;
  const least = Number(schema["minLength"] ?? 0);
  return value.padEnd(least, ".").slice(0, Number(schema["maxLength"] ?? Infinity));
}
