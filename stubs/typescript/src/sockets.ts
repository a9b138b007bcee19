import type { Socket } from "node:net";

import type { ChannelCredentials } from "@grpc/grpc-js";

/** How long a broker may take from a connection's beginning to its first word of HTTP/2. */
const FIRST_WORD_MS = 5_000;
/** How long a connection may take to end well. */
const LAST_WORD_MS = 1_000;

/**
 * The sockets of one channel, and what grpc-js does not do with them. They
 *
 * - do not keep the process alive, which the open stream of a client would for ever. Whoever waits for an answer keeps it
 *   alive by a timer (see shared-calls.ts);
 * - are given up when nobody speaks on them: grpc-js waits for ever, and tries no other address (grpc-node#2785);
 * - are gone soon after the channel was closed, also those on which the other side ends nothing, or never began.
 */
export class Sockets {
  /** Each that is open, with the one over it that HTTP/2 is spoken on; undefined while TLS is being agreed on. */
  readonly #open = new Map<Socket, Socket | undefined>();
  #isClosed = false;

  /** Lets channels that are made with these credentials use sockets of these; returns them. */
  attach(credentials: ChannelCredentials): ChannelCredentials {
    const createConnector = credentials._createSecureConnector.bind(credentials);
    credentials._createSecureConnector = (...parameters) => {
      const connector = createConnector(...parameters);
      const connect = connector.connect.bind(connector);
      connector.connect = async (tcp) => {
        this.#add(tcp);
        const connected = await connect(tcp);
        if (!tcp.destroyed) {
          this.#open.set(tcp, doNotHold(connected.socket));
        }
        return connected;
      };
      return connector;
    };
    return credentials;
  }

  /** Ends those that do not end by themselves now that their channel is closed, and takes no more. */
  close(): void {
    this.#isClosed = true;
    setTimeout(() => {
      for (const socket of this.#open.keys()) {
        socket.destroy();
      }
    }, LAST_WORD_MS).unref();
  }

  #add(socket: Socket): void {
    if (this.#isClosed) {
      socket.destroy();
      throw new Error("the channel is closed");
    }
    doNotHold(socket);
    this.#open.set(socket, undefined);
    const timer = setTimeout(() => {
      if ((this.#open.get(socket)?.bytesRead ?? 0) === 0) {
        socket.destroy(); // without an error, for which grpc-js would end the next connection too
      }
    }, FIRST_WORD_MS).unref();
    socket.once("close", () => {
      clearTimeout(timer);
      this.#open.delete(socket);
    });
  }
}

/** grpc-js refs a socket for each open call and has no setting for it, so what it gets cannot be reffed. */
function doNotHold(socket: Socket): Socket {
  socket.unref();
  socket.ref = () => socket;
  return socket;
}
