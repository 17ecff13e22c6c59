// SPDX-License-Identifier: Apache-2.0
// gRPC behind TLS 1.3. A client's certificate is asked for and may be absent: clients of ModelExpress
// have a bearer token instead, and who enrols has neither. Sockets are accepted here and not by the
// gRPC library, so that strangers cost a bounded number of connections and handshakes.

import type net from "node:net";
import tls from "node:tls";
import { type Server, ServerCredentials } from "@grpc/grpc-js";
import { RelightError } from "../errors.ts";
import { secureContextOptions } from "../trust/tls.ts";
import { type TlsMaterial, tlsIdentity } from "../trust/tls-material.ts";

export interface DoorLimits {
  readonly connectionsMax: number;
  /** Begun in one second. One costs about a millisecond. */
  readonly handshakesPerSecondMax: number;
  readonly handshakeMsMax: number;
}

export const doorLimits: DoorLimits = {
  connectionsMax: 20_000,
  handshakesPerSecondMax: 300,
  handshakeMsMax: 5_000,
};

export interface Door extends AsyncDisposable {
  readonly port: number;
  /** For connections from now on. */
  renew(material: TlsMaterial): void;
}

/** @throws RelightError `port_in_use`. */
export async function openDoor(
  server: Server,
  material: TlsMaterial,
  options: {
    readonly host: string;
    readonly port: number;
    readonly limits: DoorLimits;
    /** Called for each connection that is ended unheard. */
    readonly onRefused: () => void;
  },
): Promise<Door> {
  const { host, port, limits, onRefused } = options;
  // What it is given speaks TLS already; the library only sees who has shaken hands.
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const listener = tls.createServer(
    {
      ...secureContextOptions(tlsIdentity(material)),
      requestCert: true,
      rejectUnauthorized: false,
      handshakeTimeout: limits.handshakeMsMax,
      ALPNProtocols: ["h2"],
      noDelay: true,
    },
    (socket) => {
      socket.on("error", () => socket.destroy());
      injector.injectConnection(socket);
    },
  );
  const sockets = new Set<net.Socket>();
  const admits = perSecond(limits.handshakesPerSecondMax);
  listener.on("connection", (socket: net.Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    if (!admits(performance.now())) socket.destroy();
  });
  // A handshake that failed, took too long or was cut off: Node leaves the socket to us.
  listener.on("tlsClientError", (_error, socket) => {
    onRefused();
    socket.destroy();
  });
  listener.maxConnections = limits.connectionsMax;
  listener.on("drop", onRefused);
  const bound = await listen(listener, host, port);
  return {
    port: bound,
    renew: (next) => listener.setSecureContext(secureContextOptions(tlsIdentity(next))),
    [Symbol.asyncDispose]: async () => {
      const closed = new Promise((resolve) => listener.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

function listen(listener: net.Server, host: string, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    listener.once("error", (cause) => {
      const message = `Cannot listen on ${host}:${port}: ${cause.message}`;
      reject(new RelightError("port_in_use", message, { cause }));
    });
    listener.listen({ host, port }, () => {
      const address = listener.address();
      resolve(typeof address === "object" && address !== null ? address.port : port);
    });
  });
}

function perSecond(max: number): (nowMs: number) => boolean {
  let secondMs = Number.NEGATIVE_INFINITY;
  let count = 0;
  return (nowMs) => {
    if (nowMs - secondMs >= 1_000) {
      secondMs = nowMs;
      count = 0;
    }
    count++;
    return count <= max;
  };
}
