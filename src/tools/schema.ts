import { Ajv } from "ajv";
import type { ErrorObject, ValidateFunction } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";
import { safeParseAsync, toJSONSchema } from "zod/v4/core";
import type { $ZodType } from "zod/v4/core";
import type { JsonSchema, ToolSchema } from "./defineTool.ts";

/** A value that fits its schema, or a sentence that names the fields that do not. */
export type Checked = { ok: true; value: unknown } | { ok: false; problem: string };

export interface CompiledSchema {
  /** What the model is shown. */
  json: JsonSchema;
  check(value: unknown): Promise<Checked>;
}

/** Providers write keywords of their own into schemas, and formats that only the model heeds. */
const ajvOptions = {
  strict: false,
  validateFormats: false,
  allErrors: true,
  addUsedSchema: false,
  logger: false,
} as const;

/** Enough for the model to mend its call. */
const maxProblems = 5;

function isZod(schema: ToolSchema): schema is $ZodType {
  return "_zod" in schema;
}

function isPlainObject(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

function sayAjv({ instancePath, message, params }: ErrorObject): string {
  const where = instancePath === "" ? "the value" : instancePath;
  const detail: unknown = params["additionalProperty"] ?? params["allowedValues"];
  const shown = detail === undefined ? "" : `: ${JSON.stringify(detail)}`;
  return `${where} ${message ?? "is invalid"}${shown}`;
}

function compileJson(schema: JsonSchema): CompiledSchema {
  const isDraft07 = JSON.stringify(schema["$schema"] ?? "").includes("draft-07");
  const ajv = isDraft07 ? new Ajv(ajvOptions) : new Ajv2020(ajvOptions);
  const validate: ValidateFunction = ajv.compile(schema);
  return {
    json: schema,
    async check(value) {
      if (validate(value)) return { ok: true, value };
      const problems = (validate.errors ?? []).slice(0, maxProblems).map(sayAjv);
      return { ok: false, problem: problems.join("; ") };
    },
  };
}

function compileZod(schema: $ZodType): CompiledSchema {
  const { $schema: _, ...json } = toJSONSchema(schema, { io: "input" });
  return {
    json,
    async check(value) {
      const parsed = await safeParseAsync(schema, value);
      if (parsed.success) return { ok: true, value: parsed.data };
      const problems = parsed.error.issues.slice(0, maxProblems).map((issue) => {
        const where = issue.path.length === 0 ? "the value" : `/${issue.path.join("/")}`;
        return `${where}: ${issue.message}`;
      });
      return { ok: false, problem: problems.join("; ") };
    },
  };
}

/** @throws Error when the schema is no schema, or one that has no form in JSON Schema. */
export function compileSchema(schema: ToolSchema): CompiledSchema {
  if (typeof schema !== "object" || schema === null) throw new TypeError("it is no object");
  if (isZod(schema)) return compileZod(schema);
  if (!isPlainObject(schema)) {
    throw new TypeError("it is neither a zod 4 schema nor a plain JSON Schema object");
  }
  return compileJson(schema);
}
