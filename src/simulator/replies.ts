// What friendly mode says: the first rule that knows what to do with the message.

interface Conversation {
  message: string;
  /** The user's messages before this one, oldest first. */
  before: readonly string[];
  /** Texts that the developer gave. */
  context: readonly string[];
}

type Rule = (conversation: Conversation) => string | undefined;

/** Counting further than this would only be long. */
const MAX_COUNT = 1000;
const MAX_LIST_ENTRIES = 50;
const MAX_ECHO_CHARS = 500;
/** A sentence of the context answers a question that shares this many longer words with it. */
const MIN_SHARED_WORDS = 2;

const RULES: readonly Rule[] = [
  recallName,
  recallMessage,
  noteName,
  repeat,
  count,
  calculate,
  tellTime,
  joke,
  haiku,
  quoteContext,
  list,
  greet,
];

/** `said`: the user's messages, the last one being answered. */
export function composeReply(said: readonly string[], context: readonly string[]): string {
  const message = (said.at(-1) ?? "").trim();
  if (message === "") return "You said nothing.";
  const conversation = { message, before: said.slice(0, -1), context };
  for (const rule of RULES) {
    const reply = rule(conversation);
    if (reply !== undefined) return reply;
  }
  return `You asked: ${message.slice(0, MAX_ECHO_CHARS)}`;
}

const NAME = /\b(?:my name is|i am called|call me)\s+([\p{L}][\p{L}'-]*)/iu;

function recallName({ message, before }: Conversation): string | undefined {
  if (!/\b(what(?:'s| is) my name|who am i|my name\?)/i.test(message)) return undefined;
  const name = before
    .toReversed()
    .map((one) => NAME.exec(one)?.[1])
    .find(Boolean);
  return name ? `Your name is ${name}.` : "You have not told me your name.";
}

function recallMessage({ message, before }: Conversation): string | undefined {
  if (!/\bwhat did i (?:just )?(?:say|ask|tell)/i.test(message)) return undefined;
  const last = before.at(-1);
  return last === undefined ? "You have not said anything before." : `You said: ${last}`;
}

function noteName({ message }: Conversation): string | undefined {
  const name = NAME.exec(message)?.[1];
  return name && `Nice to meet you, ${name}.`;
}

function repeat({ message }: Conversation): string | undefined {
  const match =
    /^(?:please\s+|now\s+)*(?:say|repeat|echo|reply with|answer with|respond with)(?:\s+(?:exactly|only|just|after me))*\s*[:,]?\s+([^]+)$/i.exec(
      message,
    );
  return match?.[1]!.trim().replace(/^(["'“`])([^]*)["'”`][.!]?$/, "$2");
}

function count({ message }: Conversation): string | undefined {
  const match = /\bcount\s+(?:(?:from\s+)?(\d+)\s+)?(?:up\s+)?to\s+(\d+)/i.exec(message);
  if (!match) return undefined;
  const first = Number(match[1] ?? 1);
  const length = Math.min(Math.max(Number(match[2]) - first + 1, 0), MAX_COUNT);
  return Array.from({ length }, (_, index) => first + index).join(", ");
}

const OPERATIONS: readonly [RegExp, (left: number, right: number) => number][] = [
  [/\d\s*(?:\*|×|x|times|multiplied by)\s*-?\d|\b(?:multiply|product)\b/i, (a, b) => a * b],
  [/\d\s*(?:\/|÷|divided by)\s*-?\d|\bdivide\b/i, (a, b) => a / b],
  [/\d\s*(?:\+|plus)\s*-?\d|\b(?:add|sum)\b/i, (a, b) => a + b],
  [/\d\s+(?:-|minus)\s+-?\d|\bminus\b/i, (a, b) => a - b],
];

/** One kind of operation over all numbers of the message, from left to right. */
function calculate({ message }: Conversation): string | undefined {
  const numbers = (message.match(/(?<!\d)-?\d+(?:\.\d+)?/g) ?? []).map(Number);
  const [, operation] = OPERATIONS.find(([pattern]) => pattern.test(message)) ?? [];
  if (!operation || numbers.length < 2) return undefined;
  return String(Number(numbers.reduce(operation).toPrecision(12)));
}

function tellTime({ message }: Conversation): string | undefined {
  if (!/\b(?:what|which|tell|current)\b.*\b(?:date|time|day|today)\b/i.test(message)) {
    return undefined;
  }
  return `It is ${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC.`;
}

/** The sentence of the context that shares most words with the question. */
function quoteContext({ message, context }: Conversation): string | undefined {
  const asked = new Set(longWords(message));
  let best = { sentence: "", shared: 0 };
  for (const sentence of context.join("\n").split(/(?<=[.!?])\s+|\n+/)) {
    if (/^\W*you\b/i.test(sentence)) continue; // The persona, not knowledge.
    const shared = new Set(longWords(sentence).filter((word) => asked.has(word))).size;
    if (shared > best.shared) best = { sentence: sentence.trim(), shared };
  }
  return best.shared >= MIN_SHARED_WORDS ? `From what I was given: ${best.sentence}` : undefined;
}

function longWords(sentence: string): string[] {
  const words = sentence.toLowerCase().match(/\p{L}{4,}/gu) ?? [];
  return words.map((word) => word.replace(/s$/, ""));
}

function joke({ message }: Conversation): string | undefined {
  if (!/\bjoke\b/i.test(message)) return undefined;
  return "Why did the workflow cross the road twice? It was sure that the first time had no effect.";
}

function topicOf(message: string): string {
  return /\b(?:about|of|for|on)\s+([^.?!]+)/i.exec(message)?.[1]?.trim() ?? "this";
}

function haiku({ message }: Conversation): string | undefined {
  if (!/\b(?:haiku|poem|verse)\b/i.test(message)) return undefined;
  return `No model is here,\nyet a few words come to you:\n${topicOf(message)}, in spring.`;
}

function list({ message }: Conversation): string | undefined {
  const match = /\b(?:list|name|give me)\b\D*?(\d+)?\s+([\p{L} ]+)/iu.exec(message);
  if (!match || !/\b(?:list|name \d|give me \d)/i.test(message)) return undefined;
  const length = Math.min(Number(match[1] ?? 3), MAX_LIST_ENTRIES);
  const topic = /\babout|of\b/i.test(message)
    ? topicOf(message)
    : match[2]!.trim().replace(/^(?:two|three|four|five|ten)\s+/i, "");
  return Array.from({ length }, (_, index) => `${index + 1}. ${topic}, no. ${index + 1}`).join(
    "\n",
  );
}

function greet({ message }: Conversation): string | undefined {
  return /^(?:hi|hello|hey|good (?:morning|evening|day))\b/i.test(message)
    ? "Hello! What can I do for you?"
    : undefined;
}
