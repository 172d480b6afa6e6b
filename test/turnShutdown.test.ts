import { afterEach, beforeEach, test } from "vitest";
import { gate, text } from "../src/simulator/server.ts";
import { deploy } from "./setup/deployment.ts";
import { migrateByUrl } from "./setup/migrateByUrl.ts";
import { startPostgres } from "./setup/postgresServer.ts";
import type { PostgresServer } from "./setup/postgresServer.ts";
import { describeWith } from "./setup/servers.ts";

const words = { deltas: ["One", " two", " three", " four"] };
const outageTimeoutMs = 60_000;

describeWith(["postgres", "temporal"], "a worker whose database is gone", () => {
  let postgres: PostgresServer;

  beforeEach(async () => {
    postgres = await startPostgres();
    await migrateByUrl(postgres.url());
  });

  afterEach(() => postgres.remove());

  test.each([
    ["a turn", false],
    ["a turn with a head start", true],
  ])(
    "stops all the same in the middle of %s",
    async (_, headStart) => {
      const worker = await deploy({ databaseUrl: postgres.url(), headStart });
      const pause = gate(2);
      worker.simulator.script(text("", { ...words, pauseAfter: pause }));
      await worker.turnkeeper.turns.start({ input: "Hi" });
      await pause.reached;
      await postgres.crash();
      pause.open();
      await worker.simulator.waitFor("finished");
      await worker.close();
    },
    outageTimeoutMs,
  );
});
