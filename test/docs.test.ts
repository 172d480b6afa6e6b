import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { environment } from "../src/config.ts";
import { failureRules, refusalRules } from "../src/turn/failures.ts";
import { defaultTurnLimits, disconnectGraceMs } from "../src/turn/limits.ts";
import { readWireSamples } from "./setup/wireSamples.ts";

const checkout = fileURLToPath(new URL("..", import.meta.url));

function read(path: string): string {
  return readFileSync(resolve(checkout, path), "utf8");
}

const documents = [
  "README.md",
  "CHANGELOG.md",
  ...readdirSync(resolve(checkout, "docs"), { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".md"))
    .map((path) => `docs/${path}`),
].sort();

/** The rows of the first table whose head is these columns, code marks taken off. */
function table(path: string, columns: readonly string[]): string[][] {
  const lines = read(path).split("\n");
  const head = `| ${columns.join(" | ")} |`;
  const start = lines.indexOf(head);
  if (start === -1) throw new Error(`${path} has no table with the head ${head}`);
  const rest = lines.slice(start + 2);
  const end = rest.findIndex((line) => !line.startsWith("|"));
  return rest.slice(0, end === -1 ? undefined : end).map((line) =>
    line
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim().replaceAll("`", "")),
  );
}

/** A number as the tables write it. */
const grouped = (value: number) => value.toLocaleString("en-US");

const ownHeaders = /x-turnkeeper-[a-z-]+/g;
const isOwnHeader = (name: string) => name.startsWith("x-turnkeeper-");

/** Markdown without its code blocks. */
function prose(path: string): string {
  return read(path).replaceAll(/^```.*?^```$/gms, "");
}

/** Links to other files and to headings, by their targets. */
function localLinks(path: string): string[] {
  return [...prose(path).matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target]) => target ?? "")
    .filter((target) => !/^[a-z]+:/.test(target));
}

/** The anchors that GitHub makes of the headings. */
function anchors(path: string): string[] {
  return [...prose(path).matchAll(/^#+ (.+)$/gm)].map(([, heading = ""]) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-"),
  );
}

describe("tables of the documentation", () => {
  test("README lists every variable of the configuration with its default", () => {
    const rows = table("README.md", ["variable", "unit", "default", "meaning"]);
    const documented = Object.fromEntries(rows.map(([name, , value]) => [name, value]));
    const defaults = environment.parse({}) as Record<string, string | number | undefined>;
    const real = Object.keys(environment.shape).map((name) => [
      name,
      String(defaults[name] ?? "none"),
    ]);
    expect(documented).toEqual(Object.fromEntries(real));
    expect(rows).toHaveLength(real.length);
  });

  test("errors.md lists every refusal code with its status", () => {
    const rows = table("docs/errors.md", ["code", "HTTP status", "meaning", "what to do"]);
    const real = Object.entries(refusalRules).map(([code, rule]) => [
      code,
      String(rule.httpStatus),
    ]);
    expect(rows.map(([code, status]) => [code, status])).toEqual(real);
  });

  test("failures.md lists every failure class with its action and status", () => {
    const head = ["class", "action", "HTTP status", "recognised by", "what the caller sees"];
    const rows = table("docs/failures.md", head);
    const real = Object.entries(failureRules).map(([name, rule]) => [
      name,
      rule.action,
      String(rule.httpStatus),
    ]);
    expect(rows.map((row) => row.slice(0, 3))).toEqual(real);
  });

  test("architecture.md lists every limit of a turn with its default", () => {
    const rows = table("docs/architecture.md", ["limit", "default", "when it is reached"]);
    const documented = Object.fromEntries(rows.map(([name, value]) => [name, value]));
    const real = Object.entries(defaultTurnLimits).map(([name, value]) => [name, grouped(value)]);
    expect(documented).toEqual(Object.fromEntries(real));
    expect(rows).toHaveLength(real.length);
  });

  test("http-api.md lists every header of the gateway's own", () => {
    const rows = ["request header", "answer header"].flatMap((head) =>
      table("docs/http-api.md", [head, "meaning"]),
    );
    const documented = new Set(rows.map(([name = ""]) => name).filter(isOwnHeader));
    const sources = readdirSync(resolve(checkout, "src/gateway"));
    const named = sources.flatMap((file) => read(`src/gateway/${file}`).match(ownHeaders) ?? []);
    expect(documented).toEqual(new Set(named));
    const grace = rows.find(([name]) => name === "x-turnkeeper-disconnect-grace-ms")?.[1];
    const { min, max, default: usual } = disconnectGraceMs;
    expect(grace).toContain(`${grouped(min)} to ${grouped(max)}, default ${grouped(usual)}`);
  });
});

test("failures.md lists the provider's reasons for an incomplete response", () => {
  const rows = table("docs/failures.md", ["reason", "the provider's meaning"]);
  const sampled = readWireSamples().flatMap(({ incomplete }) => incomplete ?? []);
  expect(rows.map(([reason]) => reason)).toEqual([...new Set(sampled)].sort());
});

describe.each(documents)("%s", (path) => {
  test("links to files and headings that are there", () => {
    const broken = localLinks(path).filter((target) => {
      const [file = "", anchor] = target.split("#");
      const absolute = file === "" ? path : resolve(checkout, dirname(path), file);
      const linked = relative(checkout, resolve(checkout, absolute));
      if (!existsSync(resolve(checkout, linked))) return true;
      return anchor !== undefined && !anchors(linked).includes(anchor);
    });
    expect(broken).toEqual([]);
  });

  test("names npm scripts and files of the sources that are there", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    const named = [...read(path).matchAll(/npm (?:run ([\w:-]+)|(start|test)\b)/g)];
    const unknown = named
      .map(([, run, short]) => run ?? short ?? "")
      .filter((s) => !(s in scripts));
    expect(unknown).toEqual([]);
    const files = [...read(path).matchAll(/`((?:src|test|bench|setup|crash)\/[\w./-]+)`/g)];
    const missing = files
      .map(([, file = ""]) => file)
      .filter((file) => !file.includes("NNNN") && !existsSync(resolve(checkout, file)));
    expect(missing).toEqual([]);
  });
});

function filesUnder(folder: string, ending: string): string[] {
  const files = readdirSync(resolve(checkout, folder), { recursive: true, encoding: "utf8" });
  return files.filter((file) => file.endsWith(ending));
}

test("architecture.md names, for every invariant, the files whose comments cite it", () => {
  const rows = table("docs/architecture.md", ["no.", "invariant", "kept in"]);
  expect(rows.map(([number]) => number)).toEqual(rows.map((_, at) => `[${at + 1}]`));
  const named = rows.flatMap(([number, , kept = ""]) =>
    [...kept.matchAll(/[\w/]+\.ts/g)].map(([file]) => `${number} ${file}`),
  );
  const cited = filesUnder("src", ".ts").flatMap((file) => {
    const comments = read(`src/${file}`).match(/^\s*(?:\/?\*|\/\/).*$/gm) ?? [];
    const numbers = comments.join("\n").match(/\[\d+\]/g) ?? [];
    return [...new Set(numbers)].map((number) => `${number} ${file}`);
  });
  expect(named.sort()).toEqual(cited.sort());
});

test("development.md tells of every test file what it guards", () => {
  const rows = table("docs/development.md", ["files", "guard"]);
  const patterns = rows.flatMap(([files = ""]) => files.split(", "));
  const files = filesUnder("test", ".test.ts");
  const named = patterns.map((pattern) => {
    const regex = new RegExp(`^${pattern.replaceAll(".", "\\.").replaceAll("*", "[^/]*")}$`);
    return { pattern, files: files.filter((file) => regex.test(file)) };
  });
  expect(named.filter((each) => each.files.length === 0)).toEqual([]);
  expect(new Set(named.flatMap((each) => each.files))).toEqual(new Set(files));
});
