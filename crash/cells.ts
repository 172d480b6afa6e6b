import { points } from "./points.ts";
import type { MatrixPoint } from "./points.ts";
import { randomOf, shuffle } from "./random.ts";
import { ways } from "./ways.ts";
import type { Way } from "./ways.ts";

/** How a step survives its worker; an agent's choice. */
export type Policy = "foreground" | "background";

/** One kill: where, who and how. The point says in which scenario. */
export interface Cell {
  /** `POLICY/POINT/VICTIM/WAY`, by which it can be run again. */
  name: string;
  policy: Policy;
  point: MatrixPoint;
  way: Way;
}

/**
 * A turn can be terminated by hand only where Temporal has it, and runs it. In `serve` the worker is the
 * gateway.
 */
function isPossible(point: MatrixPoint, { victim }: Way): boolean {
  if (victim === "workflow") return point.hasWorkflow;
  return victim !== "gateway" || point.scenario.deployment === "apart";
}

/** So many that each point has its own process killed with both policies, and each way a dozen others. */
export const defaultKills = 540;

/** The whole matrix, in its own order. */
export function allCells(policies: readonly Policy[]): Cell[] {
  return policies.flatMap((policy) =>
    points
      .filter((point) => point.policies.includes(policy))
      .flatMap((point) =>
        ways
          .filter((way) => isPossible(point, way))
          .map((way) => ({
            name: `${policy}/${point.name}/${way.victim}/${way.way}`,
            policy,
            point,
            way,
          })),
      ),
  );
}

/** The way whose recovery has a bar. */
export function isWorkerKill({ way }: Cell): boolean {
  return way.victim === "worker" && way.way === "kill -9";
}

/** A kill of whoever is at the point. */
export function isOwnKill(cell: Cell): boolean {
  if (cell.point.by !== "gateway") return isWorkerKill(cell);
  return cell.way.victim === "gateway" && cell.way.way === "kill -9";
}

/**
 * As many cells as are asked for, in a random order, spread over the matrix: every policy, point and
 * way comes up before any comes up again much more often.
 *
 * @param isFirst cells that come before all others.
 */
export function drawCells(
  cells: readonly Cell[],
  count: number,
  seed: number,
  isFirst: (cell: Cell) => boolean = () => false,
): Cell[] {
  const drawn: Cell[] = [];
  const uses = new Map<unknown, number>();
  let left = shuffle(randomOf(seed, "order"), cells);
  const weigh = (cell: Cell): number => {
    const { policy, point, way } = cell;
    const spread = [policy, point, way].reduce<number>(
      (sum, part) => sum + (uses.get(part) ?? 0) ** 2,
      0,
    );
    return isFirst(cell) ? -1 / (1 + spread) : spread;
  };
  while (drawn.length < count && left.length > 0) {
    const weights = new Map(left.map((cell) => [cell, weigh(cell)]));
    const least = Math.min(...weights.values());
    const next = left.find((cell) => weights.get(cell) === least) as Cell;
    drawn.push(next);
    left = left.filter((cell) => cell !== next);
    for (const part of [next.policy, next.point, next.way]) {
      uses.set(part, (uses.get(part) ?? 0) + 1);
    }
  }
  return shuffle(randomOf(seed, "sequence"), drawn);
}
