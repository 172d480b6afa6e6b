import type { FastifyInstance } from "fastify";
import { addItems, deleteItem, listItems, readItem } from "../store/conversations.ts";
import type { Database } from "../store/database.ts";
import { Refusal } from "../turn/failures.ts";
import { checkId } from "../turn/request.ts";
import { objectBody, refuseOtherFields } from "./body.ts";
import { conversationObject, findConversation, itemsOf } from "./conversations.ts";
import type { ByConversation } from "./conversations.ts";
import { shownItem } from "./items.ts";
import { includeQuery, listObject, pageQuery, querySchema } from "./page.ts";
import type { PageQuery } from "./page.ts";

interface ByItem {
  Params: { id: string; itemId: string };
}

/** `/v1/conversations/{id}/items` and `/v1/conversations/{id}/items/{item}`. */
export function addConversationItemRoutes(app: FastifyInstance, database: Database): void {
  const path = "/v1/conversations/:id/items";
  const includeSchema = querySchema(includeQuery);

  app.post<ByConversation>(path, { schema: includeSchema }, async (request) => {
    const body = objectBody(request);
    refuseOtherFields(body, ["items"]);
    const items = itemsOf(body);
    if (items.length === 0) {
      throw new Refusal("invalid_value", "'items' must have at least one item.", "items");
    }
    const id = checkId(request.params.id, "conversation");
    await addItems(database, request.caller.project, id, items);
    return listObject(items.map(shownItem), items.length);
  });

  app.get<ByConversation & { Querystring: PageQuery }>(
    path,
    { schema: querySchema({ ...pageQuery, ...includeQuery }) },
    async (request) => {
      const { limit, order, after } = request.query;
      const { id } = await findConversation(database, request);
      const page = {
        order,
        limit: limit + 1,
        after: after === undefined ? undefined : checkId(after, "after"),
      };
      const items = await listItems(database, request.caller.project, id, page);
      return listObject(items.map(shownItem), limit);
    },
  );

  app.get<ByItem>(`${path}/:itemId`, { schema: includeSchema }, async (request) => {
    const { id } = await findConversation(database, request);
    const itemId = checkId(request.params.itemId, "item_id");
    return shownItem(await readItem(database, request.caller.project, id, itemId));
  });

  app.delete<ByItem>(`${path}/:itemId`, async (request) => {
    const conversation = await findConversation(database, request);
    const itemId = checkId(request.params.itemId, "item_id");
    await deleteItem(database, request.caller.project, conversation.id, itemId);
    return conversationObject(conversation);
  });
}
