import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { allCells, defaultKills, drawCells, isWorkerKill } from "../../crash/cells.ts";
import { points } from "../../crash/points.ts";
import { marks, moments } from "../../crash/proxies/statements.ts";
import { ways } from "../../crash/ways.ts";

const store = fileURLToPath(new URL("../../src/store/", import.meta.url));

test("every statement that the matrix strikes at is told by a text that one module has", () => {
  const modules = readdirSync(store)
    .filter((name) => name.endsWith(".ts") && name !== "pglite.ts")
    .map((name) => readFileSync(`${store}${name}`, "utf8"));
  const found = marks.map(([mark]) => [mark, modules.filter((text) => text.includes(mark)).length]);
  expect(found).toEqual(marks.map(([mark]) => [mark, 1]));
});

test("something dies before and after every kind of write, and everywhere a worker", () => {
  const held = points.filter(({ at }) => at === "statement");
  const sides = new Set(held.map(({ what, side }) => `${side} ${what}`));
  const wanted = moments.flatMap((moment) => [`before ${moment}`, `after ${moment}`]);
  expect([...sides].sort()).toEqual(wanted.sort());
  const cells = allCells(["foreground", "background"]);
  const drawn = drawCells(cells, defaultKills, 1, isWorkerKill);
  expect(drawn.filter(isWorkerKill)).toHaveLength(cells.filter(isWorkerKill).length);
  const uses = ways.map((way) => drawn.filter((cell) => cell.way === way).length);
  expect(Math.min(...uses)).toBeGreaterThanOrEqual(10);
});

test("points and cells have names of their own, and the same seed draws the same cells", () => {
  const cells = allCells(["foreground", "background"]);
  expect(new Set(points.map(({ name }) => name)).size).toBe(points.length);
  expect(new Set(cells.map(({ name }) => name)).size).toBe(cells.length);
  const draw = (seed: number) => drawCells(cells, 60, seed).map(({ name }) => name);
  expect(draw(1)).toEqual(draw(1));
  expect(draw(1)).not.toEqual(draw(2));
  expect(new Set(draw(1)).size).toBe(60);
});
