import { join } from "node:path";
import { cacheFolder } from "../../setup/cacheFolder.mjs";
import { installOnce } from "../../setup/installOnce.mjs";
import { runCommand } from "../../setup/runCommand.mjs";

const sdk = { name: "temporalio", version: "1.35.0" };

/**
 * The folder with Temporal's SDK for the Python that is here, kept in the cache; or the reason why it
 * cannot be had, which is a failure under `CI`.
 */
export async function installPythonTemporal(): Promise<string | { missing: string }> {
  try {
    const printTag = "import sys; print('%d.%d' % sys.version_info[:2])";
    const python = (await runCommand("python3", ["-c", printTag])).trim();
    const folder = join(cacheFolder(), `${sdk.name}-${sdk.version}-python${python}`);
    return await installOnce(folder, async (staging) => {
      const quiet = ["--disable-pip-version-check", "--no-input", "--no-compile", "--quiet"];
      const target = ["--only-binary=:all:", "--target", staging, `${sdk.name}==${sdk.version}`];
      await runCommand("python3", ["-m", "pip", "install", ...quiet, ...target]);
    });
  } catch (error) {
    if (process.env["CI"]) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    return { missing: reason.split("\n")[0] ?? "" };
  }
}

/** The SDK's own threads can abort the interpreter while it ends, after all has been done. */
const endAtOnce = "import os, sys\nsys.stdout.flush()\nos._exit(0)\n";

/** Runs Python code with that SDK and returns what it prints. */
export function runPython(sdkFolder: string, code: string, args: string[]): Promise<string> {
  const env = { PATH: process.env["PATH"], PYTHONPATH: sdkFolder, PYTHONDONTWRITEBYTECODE: "1" };
  return runCommand("python3", ["-c", `${code}\n${endAtOnce}`, ...args], { env });
}
