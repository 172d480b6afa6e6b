// Puts beside the compiled sources what the compiler leaves out: the migrations, and the workflows
// as one file, so that a worker need not bundle them when it starts.
import { cp, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { bundleWorkflowCode } from "@temporalio/worker";

// @ts-ignore It is there once the compiler has run.
const { preloadModules } = await import("../dist/src/worker.js");
const root = new URL("../", import.meta.url);
const path = (/** @type {string} */ relative) => fileURLToPath(new URL(relative, root));

await cp(path("src/store/migrations"), path("dist/src/store/migrations"), { recursive: true });
const { code } = await bundleWorkflowCode({
  workflowsPath: path("dist/src/workflows/index.js"),
  preloadModules,
});
await writeFile(path("dist/workflows.bundle.js"), code);
