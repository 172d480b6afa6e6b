import type { FastifyInstance, FastifyRequest } from "fastify";
import {
  createConversation,
  deleteConversation,
  readConversation,
  updateConversation,
} from "../store/conversations.ts";
import type { Conversation } from "../store/conversations.ts";
import type { Database } from "../store/database.ts";
import { Refusal } from "../turn/failures.ts";
import type { Item } from "../turn/items.ts";
import { checkId, checkItems, checkMetadata } from "../turn/request.ts";
import { objectBody, refuseOtherFields } from "./body.ts";

export interface ByConversation {
  Params: { id: string };
}

/** The OpenAI API's limit of items per request (API reference, "Create items"). */
const maxItems = 20;

/** Items of a request to store them. @throws Refusal naming the first that is wrong. */
export function itemsOf(body: Record<string, unknown>): Item[] {
  const items = checkItems(body["items"], "items");
  if (items.length <= maxItems) return items;
  throw new Refusal("invalid_value", `'items' may have at most ${maxItems} items.`, "items");
}

export function conversationObject(conversation: Conversation) {
  const createdAt = Math.floor(conversation.createdAt.getTime() / 1000);
  const { id, metadata } = conversation;
  return { id, object: "conversation", created_at: createdAt, metadata };
}

/** The conversation that a request's path names. @throws Refusal `conversation_not_found`. */
export async function findConversation(
  database: Database,
  request: FastifyRequest<ByConversation>,
): Promise<Conversation> {
  const id = checkId(request.params.id, "conversation");
  return found(id, await readConversation(database, request.caller.project, id));
}

function found(id: string, conversation: Conversation | null): Conversation {
  if (conversation !== null) return conversation;
  throw new Refusal("conversation_not_found", `Conversation '${id}' not found.`, "conversation");
}

/** `/v1/conversations` and `/v1/conversations/{id}`. */
export function addConversationRoutes(app: FastifyInstance, database: Database): void {
  app.post("/v1/conversations", async (request) => {
    const body = request.body === undefined ? {} : objectBody(request);
    refuseOtherFields(body, ["metadata", "items"]);
    const metadata = checkMetadata(body["metadata"]);
    const items = itemsOf({ items: body["items"] ?? [] });
    const { project } = request.caller;
    return conversationObject(await createConversation(database, project, metadata, items));
  });

  app.get<ByConversation>("/v1/conversations/:id", async (request) =>
    conversationObject(await findConversation(database, request)),
  );

  app.post<ByConversation>("/v1/conversations/:id", async (request) => {
    const body = objectBody(request);
    refuseOtherFields(body, ["metadata"]);
    if (body["metadata"] === undefined) {
      throw new Refusal("missing_required_parameter", "'metadata' is missing.", "metadata");
    }
    const id = checkId(request.params.id, "conversation");
    const metadata = checkMetadata(body["metadata"]);
    const updated = await updateConversation(database, request.caller.project, id, metadata);
    return conversationObject(found(id, updated));
  });

  app.delete<ByConversation>("/v1/conversations/:id", async (request) => {
    const id = checkId(request.params.id, "conversation");
    await deleteConversation(database, request.caller.project, id);
    return { id, object: "conversation.deleted", deleted: true };
  });
}
