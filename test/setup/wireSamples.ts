import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { fileURLToPath } from "node:url";
import type { FailureClass } from "../../src/turn/failures.ts";

const folder = fileURLToPath(new URL("../wire/", import.meta.url));

/** What the connection does when the bytes are out; without a word, the body ends in order. */
type Ending = "end" | "cut" | "reset" | "silence";

/**
 * An answer as it looks on the wire, and what Turnkeeper has to make of it. The files begin with
 * `# name: value` lines. Of a recorded one the bytes of the connection follow, of a written one status
 * line, headers and body, with LF for CRLF and without framing.
 */
export interface WireSample {
  name: string;
  /** The server, its version and the day, where the bytes are those that it sent. */
  recorded: string | null;
  /** Who has published a recording that it was written after, without ids and with shorter texts. */
  seen: string | null;
  /** Where the shape comes from, if from no recording. */
  source: string | null;
  shows: string;
  class: FailureClass | null;
  /** Of an answer that is cut and no failure: the reason of its `response.incomplete`. */
  incomplete: string | null;
  /** Of a whole answer: all of its text, as JSON. */
  text: string | null;
  code: string | null;
  /** Where it is missing, the failure has its class's own. */
  message: string | null;
  /** A part of a message that is not the same everywhere. */
  says: string | null;
  retryAfterMs: number | null;
  requestId: string | null;
  /** The time at which the answer is read. */
  now: string | null;
  ending: Ending;
  over: "http" | "https" | "a closed port";
  bytes: Buffer;
}

const fieldNames = new Set(
  "recorded seen source shows class incomplete text code message says retry-after-ms request-id now ending over".split(
    " ",
  ),
);

/** What follows the lines with names; `text` has a character for each byte. */
function splitSample(name: string, text: string): { fields: Map<string, string>; rest: string } {
  const fields = new Map<string, string>();
  let start = 0;
  while (text.startsWith("# ", start)) {
    const end = text.indexOf("\n", start);
    const [, field = "", value = ""] = /^# ([\w-]+): (.+)$/.exec(text.slice(start, end)) ?? [];
    if (!fieldNames.has(field)) throw new Error(`${name}: ${text.slice(start, end)} is unknown`);
    fields.set(field, Buffer.from(value, "latin1").toString());
    start = end + 1;
  }
  return { fields, rest: text.slice(start) };
}

/** The body in one chunk, unless the headers say its length. */
function frame(written: string, ending: Ending): string {
  if (written.trim() === "") return "";
  const [start = "", ...parts] = written.split("\n\n");
  const head = start.replaceAll("\n", "\r\n");
  const body = parts.join("\n\n");
  if (/^content-length:/m.test(start)) return `${head}\r\n\r\n${body}`;
  const chunk = body === "" ? "" : `${body.length.toString(16)}\r\n${body}\r\n`;
  const last = ending === "end" ? "0\r\n\r\n" : "";
  return `${head}\r\ntransfer-encoding: chunked\r\n\r\n${chunk}${last}`;
}

function parseSample(name: string, text: string): WireSample {
  const { fields, rest } = splitSample(name, text);
  const given = (field: string) => fields.get(field) ?? null;
  const delay = given("retry-after-ms");
  const ending = (given("ending") ?? "end") as Ending;
  const isRecorded = fields.has("recorded");
  return {
    name,
    recorded: given("recorded"),
    seen: given("seen"),
    source: given("source"),
    shows: given("shows") ?? "",
    class: given("class") as FailureClass | null,
    incomplete: given("incomplete"),
    text: given("text"),
    code: given("code"),
    message: given("message"),
    says: given("says"),
    retryAfterMs: delay === null ? null : Number(delay),
    requestId: given("request-id"),
    now: given("now"),
    ending,
    over: (given("over") ?? "http") as WireSample["over"],
    bytes: Buffer.from(isRecorded ? rest : frame(rest, ending), "latin1"),
  };
}

/** All samples of `test/wire/`, by name. */
export function readWireSamples(): WireSample[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith(".http"))
    .sort()
    .map((file) => parseSample(file, readFileSync(`${folder}${file}`, "latin1")));
}

/** A server that answers as a sample does. */
export interface SampleServer {
  baseUrl: string;
  /** Requests that have come. */
  requests(): number;
  /** The client has seen the first event: now the connection may break. */
  seen(): void;
  close(): Promise<void>;
}

/** Answers every request with the sample's bytes, written to the bare socket. */
export async function serveSample(sample: WireSample): Promise<SampleServer> {
  let requests = 0;
  const seen = Promise.withResolvers<void>();
  const answer = async (socket: Socket) => {
    socket.write(sample.bytes);
    if (sample.ending === "cut") socket.end();
    if (sample.ending !== "reset") return;
    // A reset throws away what the other side has not read.
    if (sample.bytes.length > 0) await seen.promise;
    socket.resetAndDestroy();
  };
  const server = createServer((request) => {
    requests += 1;
    request.resume().once("end", () => void answer(request.socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const close = async () => {
    seen.resolve();
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  };
  if (sample.over === "a closed port") await close();
  return {
    baseUrl: `${sample.over === "https" ? "https" : "http"}://127.0.0.1:${port}/v1`,
    requests: () => requests,
    seen: () => seen.resolve(),
    close,
  };
}
