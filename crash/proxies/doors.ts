import { once } from "node:events";
import type { AddressInfo, Server, Socket } from "node:net";

/** A server's entrance for one process: what passes it is that process's, and it can be shut. */
export interface Door {
  port: number;
  /** Connections that were refused so far. */
  refused(): number;
  /** Breaks all connections and refuses new ones, until it is opened. */
  shut(): void;
  open(): void;
  close(): Promise<void>;
}

/** Makes a listening server an entrance that can be shut. */
export async function makeDoor(server: Server): Promise<Door> {
  const sockets = new Set<Socket>();
  let isShut = false;
  let refused = 0;
  server.prependListener("connection", (socket) => {
    if (isShut) {
      refused += 1;
      socket.destroy();
      return;
    }
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const breakAll = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    port: (server.address() as AddressInfo).port,
    refused: () => refused,
    shut() {
      isShut = true;
      breakAll();
    },
    open() {
      isShut = false;
    },
    async close() {
      isShut = true;
      const closed = once(server, "close");
      server.close();
      breakAll();
      await closed;
    },
  };
}
