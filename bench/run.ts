/**
 * Prints one table: what a turn costs beside a bare SDK call and a bare one-activity workflow, in
 * the same run on the same machine, with a model that answers at once. See docs/performance.md.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { join } from "node:path";
import { WorkflowNotFoundError } from "@temporalio/client";
import type { WorkflowHandle } from "@temporalio/client";
import OpenAI from "openai";
import { pino } from "pino";
import { Turnkeeper } from "../src/client.ts";
import { EventHub } from "../src/events/hub.ts";
import { openModelEndpoint } from "../src/responses/call.ts";
import { migrate } from "../src/store/migrate.ts";
import { openPostgres } from "../src/store/postgres.ts";
import { connectNatively } from "../src/temporal.ts";
import { defineAgent } from "../src/turn/agent.ts";
import { createWorker } from "../src/worker.ts";
import { writeWorkflowBundle } from "../test/setup/workflowBundle.ts";
import { createBareWorker } from "./bare/worker.ts";
import { measureCancels, startByClient, startOverHttp } from "./cancels.ts";
import type { RunningTurn } from "./cancels.ts";
import { startEnvironment, startRole } from "./environment.ts";
import { percentile, timeEach } from "./measure.ts";
import { measureRates } from "./rates.ts";
import { bareSdk, bareWorkflow, inOneProcess, overHttp } from "./shapes.ts";
import type { Shape } from "./shapes.ts";
import { measureOpenStreams, measureStreams } from "./streams.ts";

const turns = Number(process.env["BENCH_TURNS"] ?? 100);
const streams = 20;
const openStreams = 200;
const cancels = 20;
const deltas = 300;
const everyMs = 10;

const rows: Record<string, string>[] = [];
function report(what: string, way: string, figure: string, bar = ""): void {
  rows.push({ what, way, figure, bar });
  console.error(`${what} | ${way} | ${figure}${bar === "" ? "" : ` | ${bar}`}`);
}

const ms = (value: number): string => `${value.toFixed(1)} ms`;
const ratio = (value: number, base: number): string => `${(value / base).toFixed(2)}x`;

const log = pino({ level: "error" }, pino.destination(2));
const folder = await mkdtemp(join(tmpdir(), "turnkeeper-bench-"));
const workflowBundle = join(folder, "workflows.js");
await writeWorkflowBundle(workflowBundle);

const environment = await startEnvironment();
const databaseUrl = environment.postgres.url();
const database = openPostgres({ url: databaseUrl });
await migrate(database);
const sdk = new OpenAI({ baseURL: environment.openaiBaseUrl, apiKey: "sk-simulated" });
const { connection, client } = await connectNatively(
  { address: environment.temporal.address },
  log,
);

// Turnkeeper in this process, like the bare workflow's worker: both get eager starts.
const hub = await EventHub.open(database);
const worker = await createWorker({
  connection,
  client,
  taskQueue: "bench",
  database,
  endpoint: openModelEndpoint({
    baseUrl: environment.openaiBaseUrl,
    apiKey: "sk-simulated",
    connectTimeoutMs: 5_000,
    headersTimeoutMs: 60_000,
  }),
  hub,
  agents: [defineAgent({ name: "default", model: "gpt-bench" })],
  tools: [],
  log,
  workflowBundle,
  maxConcurrentSteps: 250,
  shutdownGraceMs: 1_000,
});
const running = worker.run();
const bareWorker = await createBareWorker(connection, sdk);
const bareRunning = bareWorker.run();
const turnkeeper = new Turnkeeper(
  { database, hub, engine: worker.engine, headStart: worker.headStart },
  "default",
);

/** Asks something of a turn's workflow; a turn may be answered before Temporal knows it. */
async function askTemporal(
  turnId: string,
  ask: (handle: WorkflowHandle) => Promise<unknown>,
): Promise<void> {
  try {
    await ask(client.workflow.getHandle(turnId));
  } catch (error) {
    if (!(error instanceof WorkflowNotFoundError)) throw error;
    const lookAgainMs = 5;
    await delay(lookAgainMs);
    await askTemporal(turnId, ask);
  }
}

const closed = (turnId: string) => askTemporal(turnId, (handle) => handle.result());

/** Timers of workflow tasks that have long been done fire after Temporal's default of 10 s. */
const leftoversMs = 11_000;

/** A shape must not pay for what the one before it has left Temporal to do. */
async function leftovers(): Promise<void> {
  await delay(leftoversMs);
}

/** @param afterEach runs behind each turn and does not count. */
async function overhead(
  shape: Shape,
  afterEach?: (turn: string) => Promise<void>,
): Promise<{ p50: number; p95: number }> {
  const samples = await timeEach(turns, shape.turn, afterEach);
  return { p50: percentile(samples, 0.5), p95: percentile(samples, 0.95) };
}

const bare = await overhead(bareSdk(sdk));
const base = await overhead(bareWorkflow(client));
await leftovers();
const own = await overhead(inOneProcess(turnkeeper));
await leftovers();
// As the bare workflow, whose answer comes when it has closed.
const closedFirst = await overhead(inOneProcess(turnkeeper), closed);
await leftovers();
const eager = await overhead(bareWorkflow(client, true));
await leftovers();
report(
  "turn, start → answer known, p50 / p95",
  "bare SDK call",
  `${ms(bare.p50)} / ${ms(bare.p95)}`,
);
report("", "one-activity workflow", `${ms(base.p50)} / ${ms(base.p95)}`);
report("", "one-activity workflow, eager start", `${ms(eager.p50)} / ${ms(eager.p95)}`);
report(
  "",
  "Turnkeeper, one process, each turn closed in Temporal before the next",
  `${ms(closedFirst.p50)} / ${ms(closedFirst.p95)} = ${ratio(closedFirst.p50, base.p50)} / ${ratio(closedFirst.p95, base.p95)}`,
  "<= 0.75x / 0.75x",
);
report(
  "",
  "Turnkeeper, one process, the next while Temporal closes the one before",
  `${ms(own.p50)} / ${ms(own.p95)} = ${ratio(own.p50, base.p50)} / ${ratio(own.p95, base.p95)}`,
  "<= 0.75x / 0.75x",
);

const bareFirst = percentile(await timeEach(turns, bareSdk(sdk).firstToken as never), 0.5);
const first = async (shape: Shape): Promise<number> =>
  percentile(await timeEach(turns, shape.firstToken as never), 0.5) - bareFirst;
const ownFirst = await first(inOneProcess(turnkeeper));
report(
  "first token beyond the model's, p50",
  "Turnkeeper, one process",
  `${ms(ownFirst)} = ${ratio(ownFirst, base.p50)}`,
  "<= 0.85x",
);

const rates = await measureRates({
  bare: bareWorkflow(client),
  own: inOneProcess(turnkeeper),
  closed,
  leftovers,
});
report("answers/s at 50 concurrent", "Turnkeeper, one process", rates.answers.toFixed(0));
report("turns/s at 50 concurrent", "one-activity workflow", rates.bare.toFixed(0));
report(
  "",
  "Turnkeeper, answered and closed in Temporal",
  `${rates.own.toFixed(0)} = ${ratio(rates.own, rates.bare)}`,
  ">= 1.2x",
);

await leftovers();
const sample = await turnkeeper.turns.start({ model: "gpt-bench", input: "What is the answer?" });
await sample.result();
await closed(sample.id);
const description = await client.workflow.getHandle(sample.id).describe();
report(
  "history of a one-call turn",
  "Turnkeeper",
  `${description.historyLength} events, ${description.historySize} bytes`,
  "<= 12 events, <= 8 KB",
);

async function reportCancels(
  way: string,
  start: () => Promise<RunningTurn>,
  cancel: (turnId: string) => Promise<unknown>,
  bar: string,
): Promise<void> {
  const { cancelledCallClosed } = environment;
  const { p50, p95 } = await measureCancels(cancels, start, cancel, cancelledCallClosed);
  const what = "cancel → provider's connection closed, p50 / p95";
  report(what, way, `${ms(p50)} / ${ms(p95)}`, bar);
}
await reportCancels(
  "client, one process",
  () => startByClient(turnkeeper),
  (id) => turnkeeper.turns.cancel(id),
  "p95 <= 100 ms",
);

bareWorker.shutdown();
worker.shutdown();
await Promise.all([running, bareRunning]);

// Over HTTP, as in production: in one process, and as a worker and a gateway of their own.
async function reportHttp(way: string, url: string, bar: string): Promise<OpenAI> {
  const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const turn = await overhead(overHttp(openai));
  const ratios = `${ratio(turn.p50, base.p50)} / ${ratio(turn.p95, base.p95)}`;
  const figure = `${ms(turn.p50)} / ${ms(turn.p95)} = ${ratios}`;
  report("over HTTP, request → answer, p50 / p95", way, figure);
  await leftovers();
  const token = await first(overHttp(openai));
  await leftovers();
  const beyond = `${ms(token)} = ${ratio(token, base.p50)}`;
  report("over HTTP, first token beyond the model's, p50", way, beyond, bar);
  return openai;
}

const apartWorker = await startRole("worker", environment, databaseUrl, workflowBundle);
const gateway = await startRole("gateway", environment, databaseUrl, workflowBundle);
const residentMb = await apartWorker.residentMb();
report("RSS of an idle worker", "prebuilt bundle", `${residentMb.toFixed(0)} MB`, "<= 250 MB");
const overGateway = await reportHttp("worker and gateway apart", gateway.url, "");
/** Steady state: code that has run a few thousand times is faster. */
async function warmStreams(openai: OpenAI): Promise<void> {
  for (let warmUps = 2; warmUps > 0; warmUps--) {
    await measureStreams(openai, streams, deltas, everyMs);
  }
}
const direct = await measureStreams(sdk, streams, deltas, everyMs);
// The simulator stamps a delta one interval before it sends it, which the bare client's delay shows.
const stampMs = direct.p50Ms;
report(
  "delay of a delta, 20 streams at 100/s, p50 / p95",
  "bare SDK",
  `${ms(direct.p50Ms - stampMs)} / ${ms(direct.p95Ms - stampMs)}`,
);
await warmStreams(overGateway);
const cpuBefore = (await apartWorker.cpuMs()) + (await gateway.cpuMs());
const steady = await measureStreams(overGateway, streams, deltas, everyMs);
const cpuMs = (await apartWorker.cpuMs()) + (await gateway.cpuMs()) - cpuBefore;
report(
  "",
  "worker and gateway apart",
  `${ms(steady.p50Ms - stampMs)} / ${ms(steady.p95Ms - stampMs)}`,
  "p95 <= 30 ms",
);
report(
  "CPU per delta, worker + gateway",
  "",
  `${(cpuMs / steady.deltas).toFixed(3)} ms`,
  "<= 0.3 ms",
);

const startApart = () => startOverHttp(overGateway);
await reportCancels(
  "HTTP, worker and gateway apart",
  startApart,
  (id) => overGateway.responses.cancel(id),
  "p95 <= 100 ms",
);
await reportCancels(
  "Temporal's cancel, worker and gateway apart",
  startApart,
  (id) => askTemporal(id, (handle) => handle.cancel()),
  "p95 <= 1 s",
);

const perStreamMb = await measureOpenStreams(overGateway, apartWorker.residentMb, openStreams);
const grown = `${perStreamMb.toFixed(2)} MB`;
report(`RSS of a worker per open stream, ${openStreams} at a time`, "", grown, "<= 0.5 MB");
await Promise.all([apartWorker.stop(), gateway.stop()]);

const serve = await startRole("serve", environment, databaseUrl, workflowBundle);
const overServe = await reportHttp("serve", serve.url, "<= 0.85x");
await warmStreams(overServe);
const together = await measureStreams(overServe, streams, deltas, everyMs);
report(
  "delay of a delta, 20 streams at 100/s, p50 / p95",
  "serve",
  `${ms(together.p50Ms - stampMs)} / ${ms(together.p95Ms - stampMs)}`,
  "p95 <= 15 ms",
);
await serve.stop();

console.table(rows);
await hub.close();
await connection.close();
await database.close();
await environment.close();
await rm(folder, { recursive: true });
process.exit();
