import { spawn } from "node:child_process";

/** As much of a failed command's output as its error shows. */
const shownOutputLines = 20;

/**
 * Runs a program to its end and collects what it prints.
 *
 * @param {string} program
 * @param {string[]} args
 * @param {import("node:child_process").SpawnOptions} [options]
 * @returns {Promise<string>} standard output and standard error, as they came
 * @throws {Error} naming the command, how it ended, and the last lines it printed
 */
export function runCommand(program, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { ...options, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    child.stdout?.on("data", (chunk) => (output += chunk));
    child.stderr?.on("data", (chunk) => (output += chunk));
    child.once("error", reject);
    child.once("close", (code, signal) => {
      if (code === 0) return resolve(output);
      const end = signal ? `was ended by ${signal}` : `exited with ${code}`;
      const last = output.trim().split("\n").slice(-shownOutputLines).join("\n");
      reject(new Error(`${[program, ...args].join(" ")} ${end}\n${last}`));
    });
  });
}
