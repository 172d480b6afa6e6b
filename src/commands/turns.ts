import type { Config } from "../config.ts";
import type { ListedTurnObject, TurnStory } from "../gateway/turnObject.ts";
import { formatCount, formatSpan, formatTime } from "./figures.ts";
import { GatewayClient } from "./gatewayClient.ts";
import { renderTable } from "./table.ts";
import { endOf, renderTurnStory } from "./turnStory.ts";

export interface ListTurns {
  status?: string;
  conversation?: string;
  agent?: string;
  /** ISO 8601. */
  since?: string;
  until?: string;
  after?: string;
  limit?: string;
  json?: boolean;
}

/** A page of turns, as the gateway lists them. */
export interface TurnPage {
  data: ListedTurnObject[];
  last_id: string | null;
  has_more: boolean;
}

/** `turnkeeper turn list`: newest first. */
export async function listTurns(config: Config, options: ListTurns): Promise<void> {
  const { status, conversation, agent, since, until, after, limit } = options;
  const page = await new GatewayClient(config).get<TurnPage>("/turnkeeper/v1/turns", {
    status,
    conversation,
    agent,
    created_after: since,
    created_before: until,
    after,
    limit,
  });
  if (options.json) return printJson(page);
  if (page.data.length === 0) return console.log("There are no such turns.");
  const columns = [
    { head: "created (UTC)" },
    { head: "turn" },
    { head: "status" },
    { head: "agent" },
    { head: "took", isFigure: true },
    { head: "tokens", isFigure: true },
  ];
  const rows = page.data.map((turn) => [
    formatTime(turn.created_at),
    turn.id,
    endOf(turn),
    turn.agent,
    formatSpan(turn.started_at, turn.ended_at),
    turn.usage === null ? "" : formatCount(turn.usage.total_tokens),
  ]);
  console.log(renderTable(columns, rows));
  if (page.has_more) console.log(`\nThere are more: --after ${page.last_id}`);
}

/** `turnkeeper turn show ID`. */
export async function showTurn(
  config: Config,
  id: string,
  options: { json?: boolean },
): Promise<void> {
  const path = `/turnkeeper/v1/turns/${encodeURIComponent(id)}`;
  const story = await new GatewayClient(config).get<TurnStory>(path);
  if (options.json) printJson(story);
  else console.log(renderTurnStory(story));
}

export function printJson(value: unknown): void {
  console.log(JSON.stringify(value, null, 2));
}
