import type { Config } from "../config.ts";
import type { CostObject } from "../gateway/costs.ts";
import type { CostFigures, CostSubject } from "../store/costs.ts";
import { formatCount, formatDollars } from "./figures.ts";
import { GatewayClient } from "./gatewayClient.ts";
import { renderTable } from "./table.ts";
import { printJson } from "./turns.ts";

export interface ShowCost {
  by: CostSubject;
  /** ISO 8601. */
  since?: string;
  until?: string;
  limit?: string;
  json?: boolean;
}

/** `turnkeeper cost`. */
export async function showCost(config: Config, options: ShowCost): Promise<void> {
  const { by, since, until, limit, json } = options;
  const query = { by, from: since, to: until, limit };
  const cost = await new GatewayClient(config).get<CostObject>("/turnkeeper/v1/cost", query);
  if (json) printJson(cost);
  else console.log(renderCost(cost));
}

function renderCost({ by, data, total, has_more: hasMore }: CostObject): string {
  if (total.calls === 0) return "There are no such model calls.";
  const figureHeads = ["turns", "calls", "wasted", "input", "output", "cost", "of it wasted"];
  const columns = [{ head: by }, ...figureHeads.map((head) => ({ head, isFigure: true }))];
  const rows = data.map((each) => [each.key ?? "(none)", ...figuresOf(each)]);
  const ending = hasMore ? [{ line: "...", under: 0 }] : [];
  const table = renderTable(columns, [...rows, ...ending, ["total", ...figuresOf(total)]]);
  return [table, ...certaintyNotes(total)].join("\n\n");
}

function figuresOf(figures: CostFigures): string[] {
  return [
    formatCount(figures.turns),
    formatCount(figures.calls),
    formatCount(figures.calls_wasted),
    formatCount(figures.input_tokens),
    formatCount(figures.output_tokens),
    marked(figures, formatDollars(figures.cost_usd)),
    formatDollars(figures.wasted_cost_usd),
  ];
}

/** `~`: partly estimated. `+`: there are calls beside it whose cost is not known. */
function marked(figures: CostFigures, dollars: string): string {
  const isEstimated = figures.calls_estimated > 0;
  const isPartial = figures.calls_unknown + figures.calls_unpriced > 0;
  return `${isEstimated ? "~" : ""}${dollars}${isPartial ? "+" : ""}`;
}

/** What of the figures is not the provider's own word. */
function certaintyNotes(total: CostFigures): string[] {
  const notes = [
    [total.calls_estimated, "estimated, as their usage never arrived (~)"],
    [total.calls_unknown, "unknown: they run, or may not have reached the provider (+)"],
    [total.calls_unpriced, "of models without a known price (+)"],
  ] as const;
  const told = notes.filter(([count]) => count > 0);
  if (told.length === 0) return [];
  const lines = told.map(([count, what]) => `  ${formatCount(count)} ${what}`);
  return [[`Of ${formatCount(total.calls)} calls are`, ...lines].join("\n")];
}
