import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { fileURLToPath } from "node:url";
import type { Client } from "@temporalio/client";
import { historyFromJSON, historyToJSON } from "@temporalio/common/lib/proto-utils";

const folder = new URL("../histories/", import.meta.url);

type History = ReturnType<typeof historyFromJSON>;

/** A workflow's history as anybody who may look at Temporal can read it. */
export async function readableHistory(temporal: Client, workflowId: string): Promise<string> {
  const history = await temporal.workflow.getHandle(workflowId).fetchHistory();
  return JSON.stringify(history, function (this: Record<string, unknown>, key, value: unknown) {
    const raw = this[key];
    return raw instanceof Uint8Array ? Buffer.from(raw).toString() : value;
  });
}

/**
 * Keeps a history for the replay test, if `UPDATE_HISTORIES` is set: to be done when the workflow's
 * code was changed on purpose and no release has run the old code.
 */
export async function keepHistory(
  name: string,
  temporal: Client,
  workflowId: string,
): Promise<void> {
  if (!process.env["UPDATE_HISTORIES"]) return;
  const history = await temporal.workflow.getHandle(workflowId).fetchHistory();
  // Who ran it is the SDK's `pid@host`, and is nobody's business.
  const own = new RegExp(`\\d+@${hostname()}(-[0-9a-f]+)?`, "g");
  const json = historyToJSON(history as History).replaceAll(own, "worker");
  await mkdir(folder, { recursive: true });
  await writeFile(new URL(`${name}.json`, folder), `${json}\n`);
}

export async function storedHistories(): Promise<{ workflowId: string; history: History }[]> {
  const names = (await readdir(folder)).filter((name) => name.endsWith(".json"));
  return Promise.all(
    names.map(async (name) => {
      const json = await readFile(fileURLToPath(new URL(name, folder)), "utf8");
      return { workflowId: name.replace(".json", ""), history: historyFromJSON(JSON.parse(json)) };
    }),
  );
}
