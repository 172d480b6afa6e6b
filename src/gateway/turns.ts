import type { FastifyInstance } from "fastify";
import type { Database } from "../store/database.ts";
import { listTurns } from "../store/turns.ts";
import type { TurnStatus } from "../turn/turn.ts";
import { listObject, pageQuery, querySchema, timeOf } from "./page.ts";
import { listedTurnObject, turnStory } from "./turnObject.ts";

const statuses: TurnStatus[] = [
  "queued",
  "admitted",
  "running",
  "completed",
  "incomplete",
  "failed",
  "cancelled",
];

const id = { type: "string", pattern: "^[\\w.:-]{1,128}$" };

const listQuery = {
  status: { type: "string", enum: statuses },
  conversation: id,
  agent: id,
  created_after: { type: "string" },
  created_before: { type: "string" },
  after: id,
  limit: pageQuery.limit,
};

interface ListQuery {
  status?: TurnStatus;
  conversation?: string;
  agent?: string;
  created_after?: string;
  created_before?: string;
  after?: string;
  limit: number;
}

/** `/turnkeeper/v1/turns`: what turns did, why they failed and what they cost. Times are ISO 8601. */
export function addTurnRoutes(
  app: FastifyInstance,
  database: Database,
  workflowsUrl: string | null,
): void {
  app.get<{ Querystring: ListQuery }>(
    "/turnkeeper/v1/turns",
    { schema: querySchema(listQuery) },
    async (request) => {
      const { query } = request;
      const { project, turns } = request.caller;
      // An unknown one would give an empty page, which reads as the end of the list.
      if (query.after !== undefined) await turns.read(query.after);
      const found = await listTurns(database, project, {
        status: query.status,
        conversationId: query.conversation,
        agent: query.agent,
        createdAfter: timeOf(query.created_after, "created_after"),
        createdBefore: timeOf(query.created_before, "created_before"),
        after: query.after,
        limit: query.limit + 1,
      });
      return listObject(found.map(listedTurnObject), query.limit);
    },
  );

  app.get<{ Params: { id: string } }>("/turnkeeper/v1/turns/:id", async (request) => {
    const turn = await request.caller.turns.read(request.params.id);
    return turnStory(database, turn, workflowsUrl);
  });
}
