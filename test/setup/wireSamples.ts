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
 * `# name: value` lines; status line, headers and body follow, with LF for CRLF and without framing.
 */
export interface WireSample {
  name: string;
  /** Where the shape comes from. The texts are shortened and nobody's account is in them. */
  source: string;
  shows: string;
  class: FailureClass | null;
  /** Of an answer that is no failure: the reason of its `response.incomplete`. */
  incomplete: string | null;
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
  head: string[];
  body: string;
}

const fieldNames = new Set(
  "source shows class incomplete code message says retry-after-ms request-id now ending over".split(
    " ",
  ),
);

function parseSample(name: string, text: string): WireSample {
  const lines = text.split("\n");
  const start = lines.findIndex((line) => !line.startsWith("# "));
  const fields = new Map(
    lines.slice(0, start).map((line) => {
      const [, field = "", value = ""] = /^# ([\w-]+): (.+)$/.exec(line) ?? [];
      if (!fieldNames.has(field)) throw new Error(`${name} has an unknown line: ${line}`);
      return [field, value];
    }),
  );
  const given = (field: string) => fields.get(field) ?? null;
  const delay = given("retry-after-ms");
  const rest = lines.slice(start);
  const gap = rest.indexOf("");
  return {
    name,
    source: given("source") ?? "",
    shows: given("shows") ?? "",
    class: given("class") as FailureClass | null,
    incomplete: given("incomplete"),
    code: given("code"),
    message: given("message"),
    says: given("says"),
    retryAfterMs: delay === null ? null : Number(delay),
    requestId: given("request-id"),
    now: given("now"),
    ending: (given("ending") ?? "end") as Ending,
    over: (given("over") ?? "http") as WireSample["over"],
    head: rest.slice(0, gap),
    body: rest.slice(gap + 1).join("\n"),
  };
}

export function readWireSamples(): WireSample[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith(".http"))
    .sort()
    .map((file) => parseSample(file, readFileSync(`${folder}${file}`, "utf8")));
}

/** The bytes in one chunk, unless the sample says their length itself. */
function bytesOf({ head, body, ending }: WireSample): string {
  if (head.length === 0) return "";
  const isFramed = head.some((line) => line.startsWith("content-length:"));
  const framed = isFramed ? head : [...head, "transfer-encoding: chunked"];
  const size = Buffer.byteLength(body).toString(16);
  const chunk = body === "" ? "" : `${size}\r\n${body}\r\n`;
  const last = ending === "end" ? "0\r\n\r\n" : "";
  return `${framed.join("\r\n")}\r\n\r\n${isFramed ? body : chunk + last}`;
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
    socket.write(bytesOf(sample));
    // A reset throws away what the other side has not read.
    if (sample.body !== "") await seen.promise;
    if (sample.ending === "cut") socket.end();
    if (sample.ending === "reset") socket.resetAndDestroy();
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
