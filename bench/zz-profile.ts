import { pino } from "pino";
import pg from "pg";
import { Turnkeeper } from "../src/client.ts";
import { EventHub } from "../src/events/hub.ts";
import { openModelEndpoint } from "../src/responses/call.ts";
import { migrate } from "../src/store/migrate.ts";
import { openPostgres } from "../src/store/postgres.ts";
import { connectNatively } from "../src/temporal.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { createWorker } from "../src/worker.ts";
import { startEnvironment } from "./environment.ts";
const log = pino({ level: "error" }, pino.destination(2));
const environment = await startEnvironment();
const databaseUrl = environment.postgres.url();
const database = openPostgres({ url: databaseUrl });
await migrate(database);
const { connection, client } = await connectNatively({ address: environment.temporal.address }, log);
const hub = await EventHub.open(database);
const worker = await createWorker({ connection, client, taskQueue: "bench", database,
  endpoint: openModelEndpoint({ baseUrl: environment.openaiBaseUrl, apiKey: "sk", connectTimeoutMs: 5000, headersTimeoutMs: 60000 }),
  workflowBundle: process.env["BUNDLE"] ?? null, hub, agents: [defineAgent({ name: "default", model: "gpt-bench" })], tools: [], log, maxModelSteps: 250, shutdownGraceMs: 1000 });
const running = worker.run();
const turnkeeper = new Turnkeeper({ database, hub, engine: worker.engine }, "default");
let t0 = 0; let on = false;
const mark = (s: string) => { if (on) console.log((performance.now() - t0).toFixed(1).padStart(7), s); };
const orig = pg.Client.prototype.query;
(pg.Client.prototype as any).query = function (this: any, ...args: any[]) {
  const q = typeof args[0] === "string" ? args[0] : args[0]?.text; const s = performance.now();
  const r = (orig as any).apply(this, args);
  if (on && r?.then) r.then(() => mark(`  sql ${(performance.now() - s).toFixed(1)} ms  ${String(q).replace(/\s+/g, " ").slice(0, 70)}`), () => {});
  return r;
};
const st = (worker.engine as any).startTurn;
(worker.engine as any).startTurn = async (t: any) => { mark("startTurn"); await st(t); mark("startTurn done"); };
async function one() {
  t0 = performance.now();
  const turn = await turnkeeper.turns.start({ agent: "gpt-bench", input: "x" });
  mark("started");
  const r = await turn.result(); mark("result " + r.status);
  await client.workflow.getHandle(turn.id).result(); mark("workflow closed");
}
if (process.env["LOAD"]) { const { throughput } = await import("./measure.ts"); const once = async () => { const t = await turnkeeper.turns.start({ agent: "gpt-bench", input: "x" }); await t.result(); }; await throughput(100, 50, once); const { execSync } = await import("node:child_process"); const ticks = (pat: string) => execSync(`cat $(pgrep -f "${pat}" | sed "s,.*,/proc/&/stat,") 2>/dev/null | cut -d")" -f2 | awk "{s+=\$13+\$14+\$15+\$16} END {print s*10}"`).toString().trim(); const p0 = Number(ticks("postgres")), m0 = Number(ticks("start-dev")); const c0 = process.cpuUsage(); const r = await throughput(400, 50, once); const c = process.cpuUsage(c0); console.log("pg ms/turn", (Number(ticks("postgres")) - p0) / 400, "temporal ms/turn", (Number(ticks("start-dev")) - m0) / 400); console.log("turns/s", r.toFixed(1), "node cpu ms/turn", ((c.user + c.system) / 1000 / 400).toFixed(2)); worker.shutdown(); await running; await environment.close(); process.exit(); }
for (let i = 0; i < 20; i++) await one();
on = true;
for (let i = 0; i < 2; i++) { console.log("----"); await one(); }
worker.shutdown(); await running; await environment.close(); process.exit();
