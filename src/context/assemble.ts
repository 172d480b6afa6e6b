import type { Item } from "../turn/items.ts";
import { repairPairs } from "./repair.ts";

/** All that a model call could be shown, in the order in which it happened. */
export interface ContextParts {
  /** The conversation's items before this turn. */
  history: readonly Item[];
  /** What the turn was started with. */
  input: readonly Item[];
  /** What the turn's finished steps have produced, outputs of tools among them. */
  steps: readonly Item[];
}

/** Chooses what goes to the model. It need not keep pairs whole: that is done behind it [9]. */
export type ContextStrategy = (parts: ContextParts) => readonly Item[];

/** Everything, in order: what was sent stays a prefix of what is sent next [10]. */
export const full: ContextStrategy = ({ history, input, steps }) => [
  ...history,
  ...input,
  ...steps,
];

/** Everything but the model's reasoning, which is of no use once the provider cannot read it. */
export const withoutReasoning: ContextStrategy = (parts) =>
  full(parts).filter((item) => item.type !== "reasoning");

/** The items of the next model call, all pairs whole. */
export function assembleContext(parts: ContextParts, strategy: ContextStrategy = full): Item[] {
  return repairPairs(strategy(parts));
}
