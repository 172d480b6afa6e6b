import type { FastifyInstance } from "fastify";
import { listRegistrations } from "../store/agents.ts";
import type { AgentRegistration } from "../store/agents.ts";
import type { Database } from "../store/database.ts";
import { Refusal } from "../turn/failures.ts";

function modelObject(agent: AgentRegistration) {
  const created = Math.floor(agent.registeredAt.getTime() / 1000);
  return { id: agent.name, object: "model", created, owned_by: "turnkeeper" };
}

/** `/v1/models`: the registered agents, which are what `model` names. */
export function addModelRoutes(app: FastifyInstance, database: Database): void {
  app.get("/v1/models", async () => ({
    object: "list",
    data: (await listRegistrations(database)).map(modelObject),
  }));

  app.get<{ Params: { id: string } }>("/v1/models/:id", async (request) => {
    const { id } = request.params;
    const agent = (await listRegistrations(database)).find((each) => each.name === id);
    if (agent !== undefined) return modelObject(agent);
    throw new Refusal("model_not_found", `The model '${id}' does not exist.`, "model");
  });
}
