/** A copy that does not keep the text alive that it was cut from; lone surrogates survive UTF-16. */
function detached(text: string): string {
  return Buffer.from(text, "utf16le").toString("utf16le");
}

/**
 * The text, or as much of its start as fits into `maxBytes` of UTF-8 together with a note that it
 * was cut. No character is split. The note itself is never cut: it has about 80 bytes.
 */
export function cutToBytes(text: string, maxBytes: number): string {
  // A UTF-16 unit is at most three bytes, so that most texts need not be counted.
  if (text.length * 3 <= maxBytes) return text;
  const bytes = Buffer.byteLength(text);
  if (bytes <= maxBytes) return text;
  const note = `\n[The result was cut: it has ${bytes} bytes, of which at most ${maxBytes} are shown.]`;
  const room = new Uint8Array(Math.max(0, maxBytes - Buffer.byteLength(note)));
  const { read } = new TextEncoder().encodeInto(text.slice(0, room.length), room);
  return detached(text.slice(0, read)) + note;
}
