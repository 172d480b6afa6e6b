import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import type { Client, WorkflowHandle } from "@temporalio/client";

const folder = new URL("../histories/", import.meta.url);

type History = Awaited<ReturnType<WorkflowHandle["fetchHistory"]>>;

/** What the messages of the SDK are made of; their own `toJSON` loses what a replay needs. */
function plain(value: unknown, bytes: (value: Uint8Array) => unknown): unknown {
  if (value instanceof Uint8Array) return bytes(value);
  if (Array.isArray(value)) return value.map((each) => plain(each, bytes));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [key, plain(inner, bytes)]),
  );
}

function readBytes(_key: string, value: unknown): unknown {
  const isBytes = typeof value === "object" && value !== null && "base64" in value;
  return isBytes ? Buffer.from(String(value.base64), "base64") : value;
}

/** A workflow's history, payloads included, as anybody who may look at Temporal can read it. */
export async function readableHistory(temporal: Client, workflowId: string): Promise<string> {
  const history = await temporal.workflow.getHandle(workflowId).fetchHistory();
  return JSON.stringify(plain(history, (bytes) => Buffer.from(bytes).toString()));
}

/** A workflow's run; by default its last one. */
export interface KeptRun {
  workflowId: string;
  runId?: string;
}

/** Keeps the history of a run for the replay test. */
export async function keepHistory(
  name: string,
  temporal: Client,
  { workflowId, runId }: KeptRun,
): Promise<void> {
  const fetched = await temporal.workflow.getHandle(workflowId, runId).fetchHistory();
  const history = plain(fetched, (bytes) => ({ base64: Buffer.from(bytes).toString("base64") }));
  // Who ran it is the SDK's `pid@host`, and is nobody's business.
  const worker = new RegExp(`\\d+@${hostname()}`, "g");
  await mkdir(folder, { recursive: true });
  const json = JSON.stringify(history).replaceAll(worker, "worker");
  await writeFile(new URL(`${name}.json`, folder), `${json}\n`);
}

/**
 * `UPDATE_HISTORIES=1 npx vitest run test/turnHistory.test.ts` makes the histories that are missing.
 * To be done when a shape was added; a stored one may be deleted first only where the workflow was
 * changed and no release has run it as it was.
 */
export const mayAddHistories = Boolean(process.env["UPDATE_HISTORIES"]);

export async function storedHistories(): Promise<{ workflowId: string; history: History }[]> {
  const names = (await readdir(folder)).filter((name) => name.endsWith(".json"));
  return Promise.all(
    names.map(async (name) => {
      const json = await readFile(new URL(name, folder), "utf8");
      return {
        workflowId: name.replace(".json", ""),
        history: JSON.parse(json, readBytes) as History,
      };
    }),
  );
}
