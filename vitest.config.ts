import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/setup/globalSetup.ts"],
    pool: "forks",
    // Much of the run is waiting for what was killed to be missed.
    maxWorkers: 4,
    // Loading the SDKs anew for each file would take a third of the run; no test replaces a module.
    isolate: false,
    testTimeout: 30_000,
    hookTimeout: 60_000,
    // A guard against hanging, as the others are; the default of 1 s is a measurement.
    expect: { poll: { timeout: 20_000 } },
  },
});
