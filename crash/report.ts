import { percentile } from "../bench/measure.ts";
import type { CellResult } from "./cell.ts";
import { isWorkerKill } from "./cells.ts";
import type { Policy } from "./cells.ts";
import { points } from "./points.ts";
import type { Breach } from "./verdict.ts";
import { ways } from "./ways.ts";

/** The timeout of each, and what is allowed beyond. */
const barsMs: Record<CellResult["inside"], number> = {
  activity: 5_000 + 2_000,
  "workflow task": 5_000 + 2_000,
};

const breaches: readonly Breach[] = [
  "lost",
  "different",
  "missing or doubled",
  "tool twice",
  "paid twice",
  "ledger",
  "left behind",
  "other",
];

export function seconds(ms: number | null): string {
  return ms === null ? "–" : (ms / 1_000).toFixed(1);
}

/** A table in Markdown, whose columns are as wide as they must be. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, at) =>
    Math.max(3, ...rows.map((row) => (row[at] ?? "").length)),
  );
  const line = (row: readonly string[]): string =>
    `| ${row.map((value, at) => value.padEnd(widths[at] ?? 0)).join(" | ")} |`;
  const [head = [], ...body] = rows;
  return [
    line(head),
    `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`,
    ...body.map(line),
  ].join("\n");
}

/** Of one policy: points down, victims and ways across, in each cell the seconds to recover. */
export function matrixTable(results: readonly CellResult[], policy: Policy): string {
  const of = results.filter((result) => result.cell.policy === policy);
  const rows = points.map((point) => [
    point.name,
    ...ways.map((way) => {
      const found = of.find(({ cell }) => cell.point === point && cell.way === way);
      if (found === undefined) return "";
      const broken = [...new Set(found.problems.map(({ breach }) => breach))];
      return broken.length > 0 ? `**${broken.join(", ")}**` : seconds(found.recoverMs);
    }),
  ]);
  return table([["point", ...ways.map(({ victim, way }) => `${victim} ${way}`)], ...rows]);
}

interface Figure {
  what: string;
  figure: string;
  bar: string;
  /** `null`: nothing was measured. */
  isKept: boolean | null;
}

function count(results: readonly CellResult[], breach: Breach): number {
  return results.filter(({ problems }) => problems.some((problem) => problem.breach === breach))
    .length;
}

function spread(samples: readonly number[]): string {
  if (samples.length === 0) return "none";
  const [p50, p95] = [0.5, 0.95].map((share) => seconds(percentile(samples, share)));
  return `${p50} / ${p95} / ${seconds(Math.max(...samples))} s (${samples.length})`;
}

function recoveries(results: readonly CellResult[], inside: CellResult["inside"]): Figure {
  const barMs = barsMs[inside];
  const kills = results.filter((result) => result.inside === inside);
  const samples = kills.flatMap(({ resumeMs }) => (resumeMs === null ? [] : [resumeMs]));
  return {
    what: `worker killed inside ${inside === "activity" ? "an" : "a"} ${inside}: another goes on after, p50 / p95 / max`,
    figure: `${spread(samples)} of ${kills.length} kills`,
    bar: `p95 <= ${barMs / 1_000} s`,
    // Nothing can be said of a bar that nothing was held against.
    isKept: samples.length === 0 ? null : percentile(samples, 0.95) <= barMs,
  };
}

/** What all cells of a policy come to, against the bars. */
export function totals(results: readonly CellResult[], policy: Policy): Figure[] {
  const of = results.filter((result) => result.cell.policy === policy);
  const killed = of.filter(({ cell }) => isWorkerKill(cell));
  const ends = killed.flatMap(({ recoverMs }) => (recoverMs === null ? [] : [recoverMs]));
  const wasted = of.reduce((sum, result) => sum + result.wasted, 0);
  return [
    { what: "kills", figure: `${of.length}`, bar: "", isKept: true },
    ...breaches.map((breach) => {
      const broken = count(of, breach);
      return { what: breach, figure: `${broken}`, bar: "0", isKept: broken === 0 };
    }),
    { what: "wasted calls", figure: `${wasted}`, bar: "", isKept: true },
    recoveries(killed, "activity"),
    recoveries(killed, "workflow task"),
    {
      what: "worker killed: the turn has ended after, p50 / p95 / max",
      figure: spread(ends),
      bar: "",
      isKept: true,
    },
  ];
}

export function totalsTable(figures: readonly Figure[]): string {
  const rows = figures.map(({ what, figure, bar, isKept }) => [
    what,
    figure,
    bar,
    bar === "" || isKept === null ? "" : isKept ? "kept" : "**broken**",
  ]);
  return table([["what", "figure", "bar", ""], ...rows]);
}
