/**
 * Prints the closing line of a run and exits with an error if anything in it failed.
 * Arguments: the JSON report of the tests, and what `npm test` exited with.
 */
import { readFileSync, rmSync } from "node:fs";

const [path = "", status = "1"] = process.argv.slice(2);
const { passed, failed, skipped } = count(readFileSync(path, "utf8"));
rmSync(path);
const broken = status !== "0" && failed === 0; // a check failed, or the tests did not run
console.log(`${passed} passed, ${broken ? 1 : failed} failed, ${skipped} skipped`);
process.exitCode = broken || failed > 0 || passed === 0 ? 1 : 0;

/**
 * A test file that cannot be loaded has no tests, and counts as one that failed.
 *
 * @param {string} json empty when the tests did not run
 */
function count(json) {
  if (json === "") return { passed: 0, failed: 0, skipped: 0 };
  const report = JSON.parse(json);
  /** @type {{ status: string, assertionResults: unknown[] }[]} */
  const files = report.testResults;
  const unloaded = files.filter(
    (file) => file.status === "failed" && file.assertionResults.length === 0,
  );
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + unloaded.length,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}
