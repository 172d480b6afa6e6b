import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { environment } from "../src/config.ts";
import { searchAttributeNames } from "../src/turn/engineNames.ts";
import { nodeFlags } from "./setup/workerProcess.ts";

function read(path: string): string {
  return readFileSync(new URL(`../${path}`, import.meta.url), "utf8");
}

const dockerfile = read("Dockerfile");
const compose = read("docker-compose.yml");

function all(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map(([, found = ""]) => found);
}

/** Temporal's are read by its SDK. */
function isOurs(variable: string): boolean {
  return /^(TURNKEEPER|OPENAI|DATABASE)_/.test(variable);
}

test("the image and the compose file set only variables that there are", () => {
  const set = [
    ...all(dockerfile, /\b([A-Z][A-Z_]+)=/g),
    ...all(compose, /^ +([A-Z][A-Z_]+):/gm),
  ].filter(isOurs);
  expect(set).toContain("TURNKEEPER_WORKFLOW_BUNDLE");
  expect(set).toContain("DATABASE_URL");
  expect(set.filter((variable) => !(variable in environment.shape))).toEqual([]);
});

test("the image and the compose file run commands that there are", () => {
  const run = [
    ...all(dockerfile, /^CMD \["(\w+)"\]$/gm),
    ...all(compose, /^ +command: \["(\w+)"\]$/gm),
  ];
  expect(run).toEqual(["gateway", "worker", "gateway"]);
  const commands = all(read("src/cli.ts"), /\.command\("(\w+)/g);
  expect(run.filter((command) => !commands.includes(command))).toEqual([]);
});

test("the image starts Node as npm start and the measurements do", () => {
  const [entry = ""] = all(dockerfile, /^ENTRYPOINT (.+)$/gm);
  const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
  for (const flag of nodeFlags) {
    expect(entry).toContain(`"${flag}"`);
    expect([scripts["start"], scripts["bench"]].join()).toMatch(
      new RegExp(`node ${flag} .*node ${flag} `),
    );
  }
});

test("the compose file registers every search attribute", () => {
  expect(all(compose, /--name=(\w+)$/gm)).toEqual([...searchAttributeNames]);
});

test("containers are given longer to stop than running steps to end", () => {
  const [seconds] = all(compose, /stop_grace_period: (\d+)s$/gm);
  const { TURNKEEPER_SHUTDOWN_GRACE_MS: graceMs } = environment.parse({});
  expect(Number(seconds) * 1000).toBeGreaterThan(graceMs);
});
