/**
 * Text from outside in the form that a column takes: no NUL and no half of a surrogate pair, which
 * PostgreSQL refuses, and at most `maxChars` characters.
 */
export function columnText(text: string, maxChars: number): string {
  return text.slice(0, maxChars).replaceAll("\0", "\u{fffd}").toWellFormed();
}
