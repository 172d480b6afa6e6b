/**
 * `npm run record-wire -- URL [FOLDER]`: a door to a model server that keeps each answer as a sample. It
 * prints the base URL to call instead of URL; each connection to it becomes one `.http` file, whose name,
 * `shows` and `class` are for whoever recorded it to write.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { connect as connectPlain, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { Command } from "commander";

/** Headers that say whose account it was. */
const privateHeader =
  /^(llm_provider-)?(set-cookie|openai-organization|openai-project|cf-ray):.*\r\n/gim;

/** Why a connection was over: the server closed, reset or refused it, or the client left first. */
type Ending = "cut" | "reset" | "refused" | "end";

interface Recording {
  answer: Buffer;
  ending: Ending;
}

/** The file: its lines of names, then the bytes as they came. */
function sampleOf(host: string, { answer, ending }: Recording): Buffer {
  const day = new Date().toISOString().slice(0, 10);
  const how = ending === "refused" ? "over: a closed port" : `ending: ${ending}`;
  const names = `# recorded: ${host}, ${day}\n# shows: \n# class: \n# ${how}\n`;
  const text = answer.toString("latin1");
  const bodyAt = text.indexOf("\r\n\r\n") + 2;
  const head = text.slice(0, bodyAt).replaceAll(privateHeader, "");
  return Buffer.from(names + head + text.slice(bodyAt), "latin1");
}

/** A server is asked by its own name, not by this door's, and for one answer. */
function readdress(request: Buffer, host: string): Buffer {
  const text = request
    .toString("latin1")
    .replace(/^connection: .*\r\n/im, "")
    .replace(/^host: .*$/im, `Host: ${host}\r\nConnection: close`);
  return Buffer.from(text, "latin1");
}

function connectTo({ protocol, hostname: host, port }: URL): Socket {
  if (protocol !== "https:") return connectPlain({ host, port: Number(port || 80) });
  return connectTls({ host, port: Number(port || 443), servername: host });
}

/** Passes one connection on until it is over. */
async function record(client: Socket, to: URL): Promise<Recording> {
  const server = connectTo(to);
  const parts: Buffer[] = [];
  const over = Promise.withResolvers<Ending>();
  client.once("data", (first) => {
    server.write(readdress(first, to.host));
    client.pipe(server);
  });
  server.on("data", (part) => {
    parts.push(part);
    client.write(part);
  });
  server
    .once("end", () => over.resolve("cut"))
    .on("error", ({ code }: NodeJS.ErrnoException) => {
      over.resolve(code === "ECONNREFUSED" ? "refused" : "reset");
    });
  client.once("close", () => over.resolve("end")).on("error", () => over.resolve("end"));
  const ending = await over.promise;
  if (ending === "cut" || ending === "end") client.end();
  else client.resetAndDestroy();
  server.destroy();
  return { answer: Buffer.concat(parts), ending };
}

const command = new Command("npm run record-wire --")
  .description("Keeps what a model server answers as samples of the wire.")
  .argument("<url>", "the server's base URL, such as http://localhost:11434/v1")
  .argument("[folder]", "where the samples go", "test/wire")
  .parse();
const [url = "", folder = ""] = command.processedArgs as string[];
const to = new URL(url);
await mkdir(folder, { recursive: true });

async function keep(client: Socket): Promise<void> {
  const recording = await record(client, to);
  if (recording.answer.length === 0 && recording.ending === "end") return;
  const file = join(folder, `recorded.${crypto.randomUUID()}.http`);
  await writeFile(file, sampleOf(to.host, recording), { flag: "wx" });
  process.stdout.write(`${file}\n`);
}

const door = createServer((client) => void keep(client));
door.listen(0, "127.0.0.1", () => {
  const { port } = door.address() as AddressInfo;
  process.stdout.write(`http://127.0.0.1:${port}${to.pathname}\n`);
});
