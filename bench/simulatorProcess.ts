import { always, startSimulator, text } from "../src/simulator/server.ts";

const words = ["The", " answer", " is", " forty", "-two", "."];

/** Stamps each delta with the time at which it leaves, so that the subscriber knows its delay. */
function* stamps(count: number): Generator<string> {
  for (let sent = 0; sent < count; sent++) {
    yield `${(performance.timeOrigin + performance.now()).toFixed(3)} `;
  }
}

/**
 * The model of the bench, in a process of its own: answers at once, except an input of
 * `stream N every M`, which is answered by N stamped deltas, M ms apart.
 */
const simulator = await startSimulator({ mode: "scripted", maxKept: 1_000_000, deltaDelayMs: 0 });
simulator.script(
  always((request) => {
    const asked = /stream (\d+) every (\d+)/.exec(JSON.stringify(request.items.at(-1)));
    if (asked === null) return text("", { deltas: words });
    const [, count, everyMs] = asked.map(Number) as [number, number, number];
    return text("", { deltas: stamps(count), deltaDelayMs: everyMs });
  }),
);
process.send?.(simulator.baseUrl);
process.on("disconnect", () => process.exit());

/** Tells the bench when the connection of a call that is to be cancelled was closed. */
for (;;) {
  await simulator.waitFor("closed", ({ body }) => JSON.stringify(body.input).includes("cancelled"));
  process.send?.(performance.timeOrigin + performance.now());
}
