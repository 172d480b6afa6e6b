import { once } from "node:events";
import { connect, createServer } from "node:net";

/** Everything that is started for development listens on this address only. */
export const loopback = "127.0.0.1";

const portsTried = 100;

/** Somebody asked for this very port, and it is taken. */
export class PortTakenError extends Error {
  override name = "PortTakenError";

  constructor(port: number, setting: string) {
    super(
      `port ${port} (${setting}) is in use on ${loopback}: stop what holds it or change ${setting}`,
    );
  }
}

/**
 * The first free port from `preferred` upwards, so that a second checkout can run beside the first.
 *
 * @throws when a hundred ports in a row are in use
 */
export async function stepToFreePort(preferred: number): Promise<number> {
  for (let port = preferred; port < preferred + portsTried && port <= 65_535; port += 1) {
    if (await isFree(port)) return port;
  }
  throw new Error(`no free port from ${preferred} to ${preferred + portsTried - 1} on ${loopback}`);
}

/**
 * A port that was set by hand: that one or an error.
 *
 * @param setting what the user set, as they know it: `--port`, `TURNKEEPER_PORT`
 * @throws {PortTakenError}
 */
export async function claimPort(port: number, setting: string): Promise<number> {
  if (!(await isFree(port))) throw new PortTakenError(port, setting);
  return port;
}

/** Any free port, chosen by the system. */
export async function anyFreePort(): Promise<number> {
  const server = createServer().listen(0, loopback);
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/**
 * Listening alone does not tell: on macOS one may listen on 127.0.0.1 while another process
 * listens on all addresses. Connecting alone does not tell either: a bound port may refuse.
 */
async function isFree(port: number): Promise<boolean> {
  return (await canListen(port)) && !(await canConnect(port));
}

function canListen(port: number): Promise<boolean> {
  const server = createServer();
  return new Promise((resolve) => {
    server.once("error", () => resolve(false));
    server.listen(port, loopback, () => server.close(() => resolve(true)));
  });
}

function canConnect(port: number): Promise<boolean> {
  const socket = connect(port, loopback);
  return new Promise<boolean>((resolve) => {
    socket.once("connect", () => resolve(true));
    socket.once("error", () => resolve(false));
  }).finally(() => socket.destroy());
}
