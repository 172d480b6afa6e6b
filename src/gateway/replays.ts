import type { FastifyInstance } from "fastify";
import type { ComparedTurn } from "../store/comparisons.ts";
import type { ReplayOptions } from "../turn/replay.ts";
import { turnObject } from "./turnObject.ts";

interface ReplayBody {
  from_start?: boolean;
  model?: string;
  instructions?: string;
  tools?: string[];
  context_strategy?: "full";
  fork?: boolean;
  allow_effects?: boolean;
  dry_run?: boolean;
}

const replayBody = {
  type: "object",
  properties: {
    from_start: { type: "boolean" },
    model: { type: "string" },
    instructions: { type: "string" },
    tools: { type: "array", items: { type: "string" } },
    context_strategy: { type: "string", enum: ["full"] },
    fork: { type: "boolean" },
    allow_effects: { type: "boolean" },
    dry_run: { type: "boolean" },
  },
  additionalProperties: false,
};

/** `null` means as if it were not there; the check of types would make `""` and `false` of it. */
function withoutNulls(body: unknown): unknown {
  if (typeof body !== "object" || body === null || Array.isArray(body)) return body;
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
}

function optionsOf(body: ReplayBody): ReplayOptions {
  return {
    fromStart: body.from_start,
    model: body.model,
    instructions: body.instructions,
    tools: body.tools,
    contextStrategy: body.context_strategy,
    fork: body.fork,
    allowEffects: body.allow_effects,
    dryRun: body.dry_run,
  };
}

/** A side of a comparison. */
function comparedObject(turn: ComparedTurn) {
  return {
    id: turn.turnId,
    model: turn.model,
    status: turn.status,
    failure: turn.failure,
    incomplete_reason: turn.incompleteReason,
    text: turn.text,
    steps: turn.steps,
    model_calls: turn.modelCalls,
    input_tokens: turn.inputTokens,
    output_tokens: turn.outputTokens,
    cost_usd: turn.costUsd,
    took_ms: turn.tookMs,
  };
}

/** What `GET …/comparison` answers. */
export interface ComparisonObject {
  object: "turn.comparison";
  original: ReturnType<typeof comparedObject>;
  replay: ReturnType<typeof comparedObject>;
  difference: { at: number; original: string; replay: string } | null;
}

/** `/turnkeeper/v1/turns/{id}/replay` and `…/comparison`. */
export function addReplayRoutes(app: FastifyInstance): void {
  app.post<{ Params: { id: string }; Body: ReplayBody; Headers: { "idempotency-key"?: string } }>(
    "/turnkeeper/v1/turns/:id/replay",
    {
      schema: { body: replayBody },
      preValidation: async (request) => {
        request.body = withoutNulls(request.body ?? {}) as ReplayBody;
      },
    },
    async (request) => {
      const { turns, apiKeyId } = request.caller;
      const start = {
        idempotencyKey: request.headers["idempotency-key"],
        apiKeyId: apiKeyId ?? undefined,
      };
      const options = optionsOf(request.body);
      return turnObject((await turns.admitReplay(request.params.id, options, start)).turn);
    },
  );

  app.get<{ Params: { id: string } }>(
    "/turnkeeper/v1/turns/:id/comparison",
    async (request): Promise<ComparisonObject> => {
      const compared = await request.caller.turns.compare(request.params.id);
      return {
        object: "turn.comparison",
        original: comparedObject(compared.original),
        replay: comparedObject(compared.replay),
        difference: compared.difference,
      };
    },
  );
}
