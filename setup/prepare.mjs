/**
 * Makes a bare clone ready: `npm start`, `npm test` and `npm run bench` run it first, under whatever
 * Node the machine has, with nothing but Node's own modules. When all is there it takes a moment.
 *
 * `node setup/prepare.mjs` sees to the packages; `node setup/prepare.mjs start` also to a Temporal
 * server. (The tests and benches get their servers themselves.)
 */

const oldestNodeMajor = 20;

const [major = 0] = process.versions.node.split(".").map(Number);
if (major < oldestNodeMajor) {
  // Old versions cannot load the rest, so it is imported only below.
  console.error(`Turnkeeper needs Node ${oldestNodeMajor} or later; this is ${process.version}.`);
  process.exit(1);
}

try {
  const { installPackages } = await import("./packages.mjs");
  await installPackages();
  if (process.argv[2] === "start") {
    const { configuredTemporal, installTemporal } = await import("./temporal.mjs");
    if (!configuredTemporal()) await installTemporal();
  }
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
