/** Names one try of one step [3]. Every write carries it; only the newest one writes. */
export interface Fence {
  turnId: string;
  step: number;
  runId: string;
  attempt: number;
}
