/** Longer messages are cut before they are searched; a failure's message is far shorter. */
const maxSearchedChars = 4_000;

const patterns: readonly (readonly [RegExp, string])[] = [
  // OpenAI's keys (sk-, sk-proj-, sk-svcacct-), also partly masked as its own errors show them.
  [/\b(sk|rk|pk|ek)[-_][\w*.…-]{4,}/g, "$1-[redacted]"],
  [/\b(Bearer|Basic)\s+[^\s"',;]+/gi, "$1 [redacted]"],
  [
    /\b(api[-_]?key|access[-_]?token|token|secret|password)(["']?\s*[=:]\s*["']?)[^\s"'&,;]+/gi,
    "$1$2[redacted]",
  ],
  [/(:\/\/)[^\s/@]+@/g, "$1[redacted]@"],
];

/** Shorter ones ("none", "ollama") are placeholders, and words of ordinary messages. */
const minSecretChars = 12;

/** Takes API keys, tokens, URL credentials and `secret` out of a text from outside [15]. */
export function redactSecrets(text: string, secret = ""): string {
  const searched = text.slice(0, maxSearchedChars);
  return patterns.reduce(
    (current, [pattern, replacement]) => current.replaceAll(pattern, replacement),
    secret.length < minSecretChars ? searched : searched.replaceAll(secret, "[redacted]"),
  );
}
