import type { ToolOutcome } from "./effects.ts";
import type { OutputEntry, TurnEvent } from "./events.ts";
import { copiedItemId } from "./ids.ts";
import { eventsOfItem, eventsOfOpenItem } from "./itemEvents.ts";
import type { Item } from "./items.ts";
import { answeredCall, callOf } from "./pairs.ts";
import { mcpCallItem } from "./serverCalls.ts";
import type { StepVerdict, ToolCall } from "./verdict.ts";

/** A step as its row has it. */
export interface RecordedStep {
  number: number;
  kind: "model" | "tool";
  name: string;
  isFinished: boolean;
  /** Of a tool step. */
  call: ToolCall | null;
  effectKey: string | null;
  outcome: ToolOutcome | null;
  /** Of a finished step, as are its items and its output. */
  verdict: StepVerdict | null;
  items: Item[];
  output: OutputEntry[];
}

/** What a replay begins with: steps that it need not run, or whose tools are still to run. */
export interface TakenOver {
  steps: RecordedStep[];
  /** Show what the steps have produced. */
  events: TurnEvent[];
  nextOutputIndex: number;
}

/**
 * The steps behind which a turn can go on: up to the first model step that is not finished, that ended
 * its turn, or whose calls a limit forbade, for that one is made again.
 */
function stepsToTake(steps: readonly RecordedStep[]): RecordedStep[] {
  const taken: RecordedStep[] = [];
  for (;;) {
    const model = steps[taken.length];
    if (!model?.isFinished || model.verdict?.next !== "tools") return taken;
    if (model.verdict.limit !== undefined) return taken;
    const first = taken.length + 1;
    const calls = steps.slice(first, first + model.verdict.tools.length);
    taken.push(model, ...calls);
    if (!calls.every((call) => call.isFinished)) return taken;
  }
}

/**
 * Items keep their id that others name by it, as calls keep their call ids, and whose encrypted content
 * the provider accepts under that id only.
 */
export function keepsItsId(item: Item): boolean {
  const isNamed = callOf(item)?.id === item.id || answeredCall(item)?.id === item.id;
  return isNamed || typeof item["encrypted_content"] === "string";
}

function openCallItem(call: ToolCall): Record<string, unknown> {
  return { ...mcpCallItem(call.itemId, call.name), arguments: call.arguments };
}

/**
 * Copies what a turn's steps have left, for a replay to go on behind it: items under new ids, those that
 * cannot do without theirs and call ids kept, places without the gaps of abandoned items.
 *
 * @param steps all steps of the turn, by number from 1.
 */
export function takeOver(steps: readonly RecordedStep[]): TakenOver {
  const taken = stepsToTake(steps);
  const ids = new Map<string, string>();
  const newIdOf = (item: Item): string => {
    if (keepsItsId(item)) return item.id;
    const id = ids.get(item.id) ?? copiedItemId(item);
    ids.set(item.id, id);
    return id;
  };
  const open = (step: RecordedStep): OutputEntry[] =>
    step.call === null || step.isFinished
      ? []
      : [{ index: step.call.outputIndex, item: openCallItem(step.call) }];
  const entries = taken
    .flatMap((step) => [...step.output, ...open(step)])
    .sort((left, right) => left.index - right.index);
  const placeOf = new Map(entries.map(({ index }, place) => [index, place]));
  const copyItem = <Any extends object>(item: Any): Any => ({
    ...item,
    id: newIdOf(item as unknown as Item),
  });
  const copyEntry = ({ index, item }: OutputEntry): OutputEntry => ({
    index: placeOf.get(index) ?? index,
    item: copyItem(item),
  });
  const openPlaces = new Set(taken.flatMap(open).map(({ index }) => index));
  return {
    steps: taken.map((step) => ({
      ...step,
      call: step.call && {
        ...step.call,
        outputIndex: placeOf.get(step.call.outputIndex) ?? step.call.outputIndex,
        itemId: newIdOf({ id: step.call.itemId, type: "mcp_call" }),
      },
      items: step.items.map(copyItem),
      output: step.output.map(copyEntry),
    })),
    events: entries.flatMap((entry) => {
      const { index, item } = copyEntry(entry);
      return openPlaces.has(entry.index)
        ? eventsOfOpenItem(item, index)
        : [...eventsOfItem(item, index)];
    }),
    nextOutputIndex: entries.length,
  };
}
