import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "../config.ts";
import type { ComparisonObject } from "../gateway/replays.ts";
import type { TurnObject } from "../gateway/turnObject.ts";
import { contentHash } from "../turn/canonical.ts";
import { isTerminal } from "../turn/turn.ts";
import { formatCount, formatDollars, formatDuration } from "./figures.ts";
import { GatewayClient, GatewayRefused } from "./gatewayClient.ts";
import type { Json } from "./gatewayClient.ts";
import { Progress } from "./progress.ts";
import { renderTable } from "./table.ts";
import { endOf } from "./turnStory.ts";
import { printJson } from "./turns.ts";
import type { TurnPage } from "./turns.ts";

/** How turns are replayed; see `ReplayOptions`. */
export interface HowToReplay {
  fromStart?: boolean;
  model?: string;
  instructions?: string;
  tools?: string[];
  contextStrategy?: string;
  fork?: boolean;
  allowEffects?: boolean;
  dryRun?: boolean;
}

/** Which turns are replayed, where no id is given. */
export interface WhichToReplay {
  status?: string;
  agent?: string;
  conversation?: string;
  /** ISO 8601. */
  since?: string;
  until?: string;
  limit: number;
}

export interface ReplayTurns extends HowToReplay, WhichToReplay {
  concurrency: number;
  json?: boolean;
}

/** What has become of one replay. */
interface Replayed {
  original: string;
  /** `null` where it was refused. */
  replay: string | null;
  /** How it ended, or why it was refused. */
  end: string;
  isCompleted: boolean;
  /** Of a dry run. */
  comparison: Json<ComparisonObject> | null;
}

const turnsPath = "/turnkeeper/v1/turns";
const pollEveryMs = 500;
const pageTurns = 100;

/**
 * `turnkeeper turn replay`: one turn, or all that a query finds. Exit code 1 unless every replay has
 * completed.
 */
export async function replayTurns(
  config: Config,
  id: string | undefined,
  options: ReplayTurns,
): Promise<void> {
  const gateway = new GatewayClient(config);
  const ids = id === undefined ? await findTurns(gateway, options) : [id];
  if (ids.length === 0) return console.log("There are no such turns.");
  const replayed =
    id === undefined
      ? await replayAll(gateway, ids, options)
      : [await replay(gateway, id, options)];
  if (options.json) printJson(replayed);
  else if (id === undefined) console.log(renderSummary(replayed));
  else for (const each of replayed) console.log(renderReplayed(each));
  if (!replayed.every((each) => each.isCompleted)) process.exitCode = 1;
}

/** Newest first. Turns that were replayed already are left to their replays, save by dry runs. */
async function findTurns(gateway: GatewayClient, which: ReplayTurns): Promise<string[]> {
  const { status, agent, conversation, since, until, limit, dryRun = false } = which;
  const found: string[] = [];
  let after: string | undefined;
  do {
    const page: Json<TurnPage> = await gateway.get<TurnPage>(turnsPath, {
      status,
      agent,
      conversation,
      created_after: since,
      created_before: until,
      after,
      limit: pageTurns,
    });
    found.push(...page.data.filter((turn) => dryRun || !turn.is_replayed).map(({ id }) => id));
    after = page.has_more ? (page.last_id ?? undefined) : undefined;
  } while (after !== undefined && found.length < limit);
  return found.slice(0, limit);
}

async function replayAll(
  gateway: GatewayClient,
  ids: readonly string[],
  options: ReplayTurns,
): Promise<Replayed[]> {
  const progress = new Progress(ids.length, process.stderr);
  const results: Replayed[] = [];
  const waiting = [...ids];
  const work = async (): Promise<void> => {
    for (let id = waiting.shift(); id !== undefined; id = waiting.shift()) {
      const result = await replay(gateway, id, options, keyOf(id, options)).catch(refused(id));
      results.push(result);
      progress.add(lineOf(result), !result.isCompleted);
    }
  };
  await Promise.all(Array.from({ length: Math.min(options.concurrency, ids.length) }, work));
  return results;
}

function refused(original: string): (error: unknown) => Replayed {
  return (error) => {
    if (!(error instanceof GatewayRefused)) throw error;
    const end = `refused: ${error.message}`;
    return { original, replay: null, end, isCompleted: false, comparison: null };
  };
}

function bodyOf(how: HowToReplay): Record<string, unknown> {
  return {
    from_start: how.fromStart,
    model: how.model,
    instructions: how.instructions,
    tools: how.tools,
    context_strategy: how.contextStrategy,
    fork: how.fork,
    allow_effects: how.allowEffects,
    dry_run: how.dryRun,
  };
}

/** A batch that was broken off and is started again finds the replays that it has made. */
function keyOf(id: string, how: HowToReplay): string {
  return `replay-${contentHash([id, bodyOf(how)]).toString("hex")}`;
}

/** Starts a replay and waits for its end. */
async function replay(
  gateway: GatewayClient,
  original: string,
  how: HowToReplay,
  idempotencyKey?: string,
): Promise<Replayed> {
  const path = `${turnsPath}/${encodeURIComponent(original)}/replay`;
  const started = await gateway.post<TurnObject>(path, bodyOf(how), idempotencyKey);
  for (;;) {
    const comparison = how.dryRun
      ? await gateway.get<ComparisonObject>(`${turnsPath}/${started.id}/comparison`)
      : null;
    const turn =
      comparison?.replay ?? (await gateway.get<TurnObject>(`${turnsPath}/${started.id}`));
    if (isTerminal(turn.status)) {
      const isCompleted = turn.status === "completed";
      return { original, replay: started.id, end: endOf(turn), isCompleted, comparison };
    }
    await delay(pollEveryMs);
  }
}

function textsOf(comparison: Json<ComparisonObject>): string {
  return comparison.difference === null ? "same text" : "other text";
}

function lineOf({ original, replay: id, end, comparison }: Replayed): string {
  if (id === null) return `${original} ${end}`;
  const compared = comparison === null ? "" : `, ${textsOf(comparison)}`;
  return `${original} replayed as ${id}: ${end}${compared}`;
}

function renderReplayed(replayed: Replayed): string {
  if (replayed.comparison === null) return lineOf(replayed);
  return renderComparison(replayed.comparison);
}

function renderComparison({ original, replay: other, difference }: Json<ComparisonObject>): string {
  const sides = [original, other];
  const row = (head: string, cell: (side: (typeof sides)[number]) => string) => [
    head,
    ...sides.map(cell),
  ];
  const table = renderTable(
    [{ head: "" }, { head: "original" }, { head: "replay" }],
    [
      row("turn", (side) => side.id),
      row("status", endOf),
      row("model", (side) => side.model),
      row("steps", (side) => formatCount(side.steps)),
      row("model calls", (side) => formatCount(side.model_calls)),
      row("input tokens", (side) => formatCount(side.input_tokens)),
      row("output tokens", (side) => formatCount(side.output_tokens)),
      row("cost", (side) => formatDollars(side.cost_usd)),
      row("took", (side) => (side.took_ms === null ? "-" : formatDuration(side.took_ms))),
    ],
  );
  if (difference === null) return `${table}\n\nThe texts are the same.`;
  const { at, original: before, replay: after } = difference;
  return `${table}\n\nThe texts differ behind ${formatCount(at)} characters:\n- ${before}\n+ ${after}`;
}

/** How many replays came to which end. */
function renderSummary(replayed: readonly Replayed[]): string {
  const counts = new Map<string, number>();
  for (const { end, comparison } of replayed) {
    const name = comparison === null ? end : `${end}, ${textsOf(comparison)}`;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const rows = [...counts]
    .sort(([, left], [, right]) => right - left)
    .map(([end, count]) => [formatCount(count), end]);
  return renderTable([{ head: "replays", isFigure: true }, { head: "end" }], rows);
}
