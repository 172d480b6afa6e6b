import type { FastifyInstance } from "fastify";
import { hideTurn } from "../store/turns.ts";
import type { Database } from "../store/database.ts";
import { Refusal } from "../turn/failures.ts";
import type { Item } from "../turn/items.ts";
import { responseObject } from "../turn/response.ts";
import { isTerminal } from "../turn/turn.ts";
import type { Turn } from "../turn/turn.ts";
import { watchConnection } from "./connection.ts";
import type { StreamParts } from "./connection.ts";
import { shownItem } from "./items.ts";
import { includeQuery, listObject, pageQuery, querySchema } from "./page.ts";
import type { PageQuery } from "./page.ts";
import { sendEvents } from "./sse.ts";

/** A cancelled turn ends within a second; callers that ask for it see the end. */
const cancelWaitMs = 5_000;

interface ById {
  Params: { id: string };
}

const retrieveQuery = {
  ...includeQuery,
  stream: { type: "boolean", default: false },
  starting_after: { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER },
  include_obfuscation: { type: "boolean", enum: [false] },
};

interface RetrieveQuery {
  stream: boolean;
  starting_after?: number;
}

function addRetrieveRoute(app: FastifyInstance, parts: StreamParts): void {
  app.get<ById & { Querystring: RetrieveQuery }>(
    "/v1/responses/:id",
    { schema: querySchema(retrieveQuery) },
    async (request, reply) => {
      const { stream, starting_after: after } = request.query;
      if (!stream && after !== undefined) {
        const problem = "'starting_after' is for streams only; add 'stream=true'.";
        throw new Refusal("invalid_value", problem, "starting_after");
      }
      const { turns } = request.caller;
      const turn = await turns.read(request.params.id);
      if (!stream) return responseObject(turn);
      const connection = watchConnection(reply, parts.closing);
      return parts.followers.answer(turn, connection.signal, async () => {
        const events = await turns.watch(turn, { after: after ?? -1, signal: connection.signal });
        await sendEvents(reply, events, connection, parts.keepAliveMs);
        return reply;
      });
    },
  );
}

function addCancelRoute(app: FastifyInstance, closing: AbortSignal): void {
  app.post<ById>("/v1/responses/:id/cancel", async (request) => {
    const { turns } = request.caller;
    const turn = await turns.cancel(request.params.id);
    if (isTerminal(turn.status)) return responseObject(turn);
    const signal = AbortSignal.any([AbortSignal.timeout(cancelWaitMs), closing]);
    // Asked for on record: the end comes, if not within this wait.
    const ended = await turns.waitForEnd(turn, signal).catch(() => turn);
    return responseObject(ended);
  });
}

function addDeleteRoute(app: FastifyInstance, database: Database): void {
  app.delete<ById>("/v1/responses/:id", async (request) => {
    const { turns, project } = request.caller;
    const { id, status } = await turns.read(request.params.id);
    if (!isTerminal(status)) {
      const problem = `The response '${id}' is still running. Cancel it, or wait for its end.`;
      throw new Refusal("conversation_busy", problem, "response_id");
    }
    await hideTurn(database, project, id);
    return { id, object: "response", deleted: true };
  });
}

/** A page of what a turn was asked. */
function inputPage(turn: Turn, query: PageQuery): Item[] {
  const { input } = turn.request;
  const items = query.order === "asc" ? input : input.toReversed();
  if (query.after === undefined) return items.slice(0, query.limit + 1);
  const at = items.findIndex((item) => item.id === query.after);
  if (at === -1) throw new Refusal("item_not_found", `Item '${query.after}' not found.`, "after");
  return items.slice(at + 1, at + 1 + query.limit + 1);
}

function addInputItemsRoute(app: FastifyInstance): void {
  app.get<ById & { Querystring: PageQuery }>(
    "/v1/responses/:id/input_items",
    { schema: querySchema({ ...pageQuery, ...includeQuery }) },
    async (request) => {
      const turn = await request.caller.turns.read(request.params.id);
      return listObject(inputPage(turn, request.query).map(shownItem), request.query.limit);
    },
  );
}

/** `/v1/responses/{id}`: turns that are on record. */
export function addStoredResponseRoutes(
  app: FastifyInstance,
  parts: StreamParts & { database: Database },
): void {
  addRetrieveRoute(app, parts);
  addCancelRoute(app, parts.closing);
  addDeleteRoute(app, parts.database);
  addInputItemsRoute(app);
}
