import type { FastifyInstance } from "fastify";
import { costSubjects, readCosts, readTotalCost } from "../store/costs.ts";
import type { Cost, CostFigures, CostSubject } from "../store/costs.ts";
import type { Database } from "../store/database.ts";
import { pageQuery, querySchema, timeOf } from "./page.ts";

const costQuery = {
  by: { type: "string", enum: costSubjects },
  from: { type: "string" },
  to: { type: "string" },
  limit: pageQuery.limit,
  order: pageQuery.order,
};

interface CostQuery {
  by?: CostSubject;
  from?: string;
  to?: string;
  limit: number;
  order: "asc" | "desc";
}

/** What `GET /turnkeeper/v1/cost` answers. */
export interface CostObject {
  object: "cost";
  by: CostSubject;
  data: Cost[];
  /** There is more than `limit` lets through; `total` has all of it. */
  has_more: boolean;
  total: CostFigures;
}

/** `/turnkeeper/v1/cost`: the ledger of a project, added up. */
export function addCostRoute(app: FastifyInstance, database: Database): void {
  app.get<{ Querystring: CostQuery }>(
    "/turnkeeper/v1/cost",
    { schema: querySchema(costQuery) },
    async (request): Promise<CostObject> => {
      const { by = "agent", limit, order } = request.query;
      const { project } = request.caller;
      const range = {
        from: timeOf(request.query.from, "from"),
        to: timeOf(request.query.to, "to"),
      };
      const [costs, total] = await Promise.all([
        readCosts(database, project, { by, ...range, order, limit: limit + 1 }),
        readTotalCost(database, project, range),
      ]);
      const data = costs.slice(0, limit);
      return { object: "cost", by, data, has_more: costs.length > limit, total };
    },
  );
}
