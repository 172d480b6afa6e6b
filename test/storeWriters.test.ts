import fc from "fast-check";
import { expect, test } from "vitest";
import type { Database } from "../src/store/database.ts";
import { endTurn } from "../src/store/endings.ts";
import type { Turn } from "../src/turn/turn.ts";
import { describeOnPostgres } from "./setup/storeDrivers.ts";
import { admit, claim, fence, flush, marksOf, result } from "./setup/storeTurns.ts";

/** What should be on record of a turn that two writers compete for. */
interface Model {
  /** The attempt that holds the step; 0 before the first claim. */
  holder: number;
  attempts: number;
  isEnded: boolean;
  marks: string[];
}

interface Writer {
  attempt: number;
  flushes: number;
  sent: string[];
}

interface Real {
  database: Database;
  turn: Turn;
  writers: [Writer, Writer];
}

type Command = fc.AsyncCommand<Model, Real>;

class ClaimCommand implements Command {
  readonly who: 0 | 1;
  constructor(who: 0 | 1) {
    this.who = who;
  }
  check(): boolean {
    return true;
  }
  async run(model: Model, real: Real): Promise<void> {
    model.attempts += 1;
    const attempt = model.attempts;
    const outcome = await claim(real.database, fence(real.turn, { attempt }));
    expect(outcome.outcome).toBe(model.isEnded ? "recorded" : "claimed");
    if (model.isEnded) return;
    model.holder = attempt;
    real.writers[this.who] = { attempt, flushes: 0, sent: [] };
  }
  toString(): string {
    return `writer ${this.who} claims`;
  }
}

class FlushCommand implements Command {
  readonly who: 0 | 1;
  readonly isResent: boolean;
  constructor(who: 0 | 1, isResent: boolean) {
    this.who = who;
    this.isResent = isResent;
  }
  check(): boolean {
    return true;
  }
  async run(model: Model, real: Real): Promise<void> {
    const writer = real.writers[this.who];
    if (writer.attempt === 0 || (this.isResent && writer.flushes === 0)) return;
    if (!this.isResent) {
      writer.flushes += 1;
      writer.sent = [
        `${writer.attempt}/${writer.flushes}/a`,
        `${writer.attempt}/${writer.flushes}/b`,
      ];
    }
    const by = fence(real.turn, { attempt: writer.attempt });
    const state = await flush(real.database, by, writer.flushes, writer.sent);
    const isHolder = model.holder === writer.attempt && !model.isEnded;
    expect(state).toBe(isHolder ? "stored" : "fenced");
    if (isHolder && !this.isResent) model.marks.push(...writer.sent);
  }
  toString(): string {
    return `writer ${this.who} ${this.isResent ? "sends its last write again" : "writes"}`;
  }
}

class EndCommand implements Command {
  readonly who: 0 | 1;
  constructor(who: 0 | 1) {
    this.who = who;
  }
  check(): boolean {
    return true;
  }
  async run(model: Model, real: Real): Promise<void> {
    const { attempt } = real.writers[this.who];
    if (attempt === 0) return;
    const mark = `${attempt}/end`;
    const last = {
      fence: fence(real.turn, { attempt }),
      result: result([], { events: [{ type: "test.mark", mark }] }),
      modelCall: null,
    };
    const ending = { status: "completed" } as const;
    const { outcome } = await endTurn(real.database, real.turn, ending, { lastStep: last });
    if (model.isEnded) return expect(outcome).toBe("already");
    expect(outcome).toBe(model.holder === attempt ? "ended" : "fenced");
    if (model.holder !== attempt) return;
    model.isEnded = true;
    model.marks.push(mark);
  }
  toString(): string {
    return `writer ${this.who} ends the turn`;
  }
}

const who = fc.constantFrom(0 as const, 1 as const);
const commands = fc.commands(
  [
    who.map((each) => new ClaimCommand(each)),
    who.map((each) => new FlushCommand(each, false)),
    who.map((each) => new FlushCommand(each, true)),
    fc.tuple(who, fc.nat(4)).map(([each]) => new EndCommand(each)),
  ],
  { maxCommands: 14 },
);

describeOnPostgres("[3][6] two writers that compete for a step", (open) => {
  test("write only while they hold it, in whatever order they act", async () => {
    const { database } = open;
    await fc.assert(
      fc.asyncProperty(commands, async (acts) => {
        const turn = await admit(database);
        const model: Model = { holder: 0, attempts: 0, isEnded: false, marks: [] };
        const idle = (): Writer => ({ attempt: 0, flushes: 0, sent: [] });
        const real: Real = { database, turn, writers: [idle(), idle()] };
        await fc.asyncModelRun(() => ({ model, real }), acts);
        expect(await marksOf(database, turn)).toEqual(model.marks);
      }),
      { numRuns: 40 },
    );
  });

  test("never write after a newer one has, when they act at the same time", async () => {
    const { database } = open;
    const turn = await admit(database);
    let attempts = 0;
    const compete = async (): Promise<void> => {
      for (let round = 0; round < 8; round++) {
        const by = fence(turn, { attempt: ++attempts });
        const { outcome } = await claim(database, by);
        if (outcome !== "claimed") continue;
        for (let number = 1; number <= 4; number++) {
          const marks = [`${by.attempt}/${number}`];
          let state = await flush(database, by, number, marks);
          while (state === "locked") state = await flush(database, by, number, marks);
          if (state === "fenced") break;
        }
      }
    };
    await Promise.all([compete(), compete(), compete(), compete()]);
    const marks = (await marksOf(database, turn)) as string[];
    const order = marks.map((mark) => mark.split("/").map(Number));
    const sorted = order.toSorted(([a = 0, b = 0], [c = 0, d = 0]) => a - c || b - d);
    expect(order).toEqual(sorted);
    expect(new Set(marks).size).toBe(marks.length);
  });
});
