/**
 * Part of `npm run build`: puts beside the compiled sources what the compiler leaves out, the
 * migrations and the workflows as one file, so that a worker need not bundle them when it starts.
 */
import { cp, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { bundleWorkflowCode } from "@temporalio/worker";
import { preloadModules } from "./worker.ts";

const root = new URL("../", import.meta.url);
const path = (relative: string): string => fileURLToPath(new URL(relative, root));

await cp(path("src/store/migrations"), path("dist/src/store/migrations"), { recursive: true });
const workflowsPath = path("src/workflows/index.ts");
const { code } = await bundleWorkflowCode({ workflowsPath, preloadModules });
await writeFile(path("dist/workflows.bundle.js"), code);
