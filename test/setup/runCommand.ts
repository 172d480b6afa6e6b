import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";

const cli = fileURLToPath(new URL("../../src/cli.ts", import.meta.url));

/** What has come of a command; `code` is -1 where it was killed. */
export interface Ran {
  code: number;
  output: string;
  errors: string;
}

/** Runs `turnkeeper` with these arguments as a process of its own, its output in pipes. */
export function runCommand(
  args: readonly string[],
  environment: Record<string, string> = {},
): Promise<Ran> {
  const env = { PATH: process.env["PATH"], HOME: process.env["HOME"], ...environment };
  return new Promise((resolve) => {
    execFile(process.execPath, [cli, ...args], { env }, (error, output, errors) => {
      const code = typeof error?.code === "number" ? error.code : error === null ? 0 : -1;
      resolve({ code, output, errors });
    });
  });
}
