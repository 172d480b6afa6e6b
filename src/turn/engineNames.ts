/** The workflow type, as it reads in the Temporal UI and in other languages' SDKs. */
export const turnWorkflowType = "conversationTurn";

/** The signal to a turn that was started directly and waits for its conversation. */
export const grantedSignalName = "granted";

/** All of type Keyword. Set at the start and at the end of a turn, where the namespace knows them. */
export const searchAttributeNames = [
  "TurnkeeperProject",
  "TurnkeeperConversation",
  "TurnkeeperAgent",
  "TurnkeeperModel",
  "TurnkeeperStatus",
  "TurnkeeperUser",
] as const;

export type SearchAttributeName = (typeof searchAttributeNames)[number];

/**
 * Of the summaries in the Temporal UI, which a server limits to 400 bytes by default
 * (`limit.userMetadataSummarySize`) and refuses when they are longer.
 */
export const maxSummaryChars = 100;

/** A worker that is silent for this long is taken for dead: its steps are given to others. */
export const heartbeatTimeoutMs = 5_000;

/** The task queue of turns and model calls. */
export const defaultTaskQueue = "turnkeeper";
