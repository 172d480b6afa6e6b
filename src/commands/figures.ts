import { InvalidArgumentError } from "commander";

/** A time in UTC, to the second. */
export function formatTime(time: string): string {
  return time.slice(0, "2026-01-31T12:00:00".length).replace("T", " ");
}

const secondMs = 1_000;
const minuteMs = 60 * secondMs;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;

/** A duration in the unit that suits it. */
export function formatDuration(ms: number): string {
  if (ms < minuteMs) return `${(ms / secondMs).toFixed(1)}s`;
  const [large, small, units] = ms < hourMs ? [minuteMs, secondMs, "ms"] : [hourMs, minuteMs, "hm"];
  const whole = Math.floor(ms / large);
  return `${whole}${units[0]}${Math.floor((ms - whole * large) / small)}${units[1]}`;
}

/** The time between two moments; the second one is now while there is none. */
export function formatSpan(from: string | null, until: string | null): string {
  if (from === null) return "-";
  return formatDuration(
    Math.max(0, (until === null ? Date.now() : Date.parse(until)) - Date.parse(from)),
  );
}

export function formatCount(count: number | null): string {
  return count === null ? "?" : count.toLocaleString("en-US");
}

/** US dollars; small amounts keep the digits that say something. */
export function formatDollars(dollars: number | null): string {
  if (dollars === null) return "?";
  const isSmall = dollars !== 0 && dollars < 1;
  return `$${dollars.toFixed(isSmall ? 6 : 2)}`;
}

/**
 * A time on the command line: ISO 8601, or an age such as `90m`, `24h` or `7d`. Returns ISO 8601.
 *
 * @throws InvalidArgumentError when it is neither.
 */
export function parseTime(text: string): string {
  const [, count, unit] = /^(\d+)([mhd])$/.exec(text) ?? [];
  const unitMs = { m: minuteMs, h: hourMs, d: dayMs }[unit ?? ""];
  const isIso = /^\d{4}-\d\d-\d\d/.test(text);
  const time =
    unitMs === undefined ? Date.parse(isIso ? text : "") : Date.now() - Number(count) * unitMs;
  if (Number.isFinite(time)) return new Date(time).toISOString();
  throw new InvalidArgumentError("A time is ISO 8601, or an age such as 90m, 24h or 7d.");
}
