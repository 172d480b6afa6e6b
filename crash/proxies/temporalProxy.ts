import { constants, connect, createServer } from "node:http2";
import type {
  ClientHttp2Session,
  Http2Session,
  IncomingHttpHeaders,
  ServerHttp2Stream,
} from "node:http2";
import type { Tripwire } from "../tripwire.ts";
import { makeDoor } from "./doors.ts";
import type { Door } from "./doors.ts";

interface Answer {
  headers: IncomingHttpHeaders;
  body: Buffer;
  /** `null`: the headers say all. */
  trailers: IncomingHttpHeaders | null;
}

/**
 * One process's entrance to a Temporal server, at which each call can be held before and after. All
 * calls of Temporal's service are unary gRPC, so an answer is passed on whole.
 *
 * @param target `host:port`
 */
export function openTemporalDoor(
  target: string,
  process: string,
  tripwire: Tripwire,
): Promise<Door> {
  const server = createServer();
  const upstreams = new WeakMap<Http2Session, ClientHttp2Session>();
  server.on("session", (session) => {
    const upstream = connect(`http://${target}`);
    upstreams.set(session, upstream);
    session.on("error", () => {});
    upstream.on("error", () => session.destroy());
    upstream.on("close", () => session.destroy());
    session.on("close", () => upstream.destroy());
  });
  server.on("stream", (stream, headers) => {
    const upstream = stream.session === undefined ? undefined : upstreams.get(stream.session);
    stream.on("error", () => {});
    if (upstream === undefined) {
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
      return;
    }
    relay(stream, headers, upstream, process, tripwire).catch(() => stream.session?.destroy());
  });
  server.on("error", () => {});
  return makeDoor(server);
}

async function relay(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  upstream: ClientHttp2Session,
  process: string,
  tripwire: Tripwire,
): Promise<void> {
  const what = String(headers[":path"]).split("/").at(-1) as string;
  await tripwire.pass({ process, what, side: "before" });
  if (stream.destroyed) return;
  const answer = await forward(stream, headers, upstream);
  const status = (answer.trailers ?? answer.headers)["grpc-status"];
  if (status === "0") await tripwire.pass({ process, what, side: "after" });
  if (stream.destroyed) return;
  const { trailers } = answer;
  if (trailers === null) {
    stream.respond(answer.headers, { endStream: true });
    return;
  }
  stream.respond(answer.headers, { waitForTrailers: true });
  stream.on("wantTrailers", () => stream.sendTrailers(trailers));
  stream.end(answer.body);
}

function forward(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  upstream: ClientHttp2Session,
): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  const request = upstream.request(headers, { endStream: false });
  stream.on("close", () => request.close(constants.NGHTTP2_CANCEL));
  stream.pipe(request);
  let head: IncomingHttpHeaders = {};
  let trailers: IncomingHttpHeaders | null = null;
  const chunks: Buffer[] = [];
  request.on("response", (received) => (head = received));
  request.on("trailers", (received) => (trailers = received));
  request.on("data", (chunk: Buffer) => chunks.push(chunk));
  request.on("error", reject);
  request.on("close", () => {
    if (head[":status"] === undefined) reject(new Error("The server gave no answer."));
    else resolve({ headers: head, body: Buffer.concat(chunks), trailers });
  });
  return promise;
}
