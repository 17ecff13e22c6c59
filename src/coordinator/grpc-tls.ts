// SPDX-License-Identifier: Apache-2.0
// gRPC behind TLS 1.3. A client's certificate is asked for and may be absent: clients of ModelExpress
// have a bearer token instead, and who enrols has neither. Sockets are accepted here and not by the
// gRPC library, so that strangers cost a bounded number of connections and handshakes.

import type net from "node:net";
import tls from "node:tls";
import { type Server, ServerCredentials } from "@grpc/grpc-js";
import { RelightError } from "../errors.ts";
import { keyIdOf } from "../trust/keys.ts";
import { secureContextOptions } from "../trust/tls.ts";
import { type TlsMaterial, tlsIdentity } from "../trust/tls-material.ts";

export interface DoorLimits {
  readonly connectionsMax: number;
  /** Begun in one second. One costs about a millisecond. */
  readonly handshakesPerSecondMax: number;
  readonly handshakeMsMax: number;
  /** From the end of the handshake. */
  readonly firstByteMsMax: number;
  /** Without a call; members connect again. */
  readonly idleMsMax: number;
}

export const doorLimits: DoorLimits = {
  connectionsMax: 20_000,
  handshakesPerSecondMax: 300,
  handshakeMsMax: 5_000,
  firstByteMsMax: 5_000,
  idleMsMax: 60_000,
};

export interface Door extends AsyncDisposable {
  readonly port: number;
  /** For connections from now on. */
  renew(material: TlsMaterial): void;
  /** Ends the open connections of revoked keys; their next ones are answered with the code. */
  endRevoked(): void;
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
    /** By the id of a key that was proved. */
    readonly isRevoked: (keyId: string) => boolean;
  },
): Promise<Door> {
  const { host, port, limits, onRefused, isRevoked } = options;
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
      const keyId = provenKey(socket);
      if (keyId !== null) {
        members.set(socket, keyId);
        socket.on("close", () => members.delete(socket));
      }
      awaitFirstByte(socket);
    },
  );
  const members = new Map<tls.TLSSocket, string>();
  const refuse = (socket: net.Socket): void => {
    onRefused();
    socket.destroy();
  };
  // The library gets who speaks: a stranger that agreed on TLS and says nothing costs it no session.
  const awaitFirstByte = (socket: tls.TLSSocket): void => {
    const late = setTimeout(() => refuse(socket), limits.firstByteMsMax);
    socket.once("close", () => clearTimeout(late));
    socket.once("readable", () => {
      clearTimeout(late);
      if (!socket.destroyed) injector.injectConnection(socket);
    });
  };
  const sockets = new Set<net.Socket>();
  const admits = perSecond(limits.handshakesPerSecondMax);
  listener.on("connection", (socket: net.Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    if (!admits(performance.now())) socket.destroy();
  });
  // A handshake that failed, took too long or was cut off: Node leaves the socket to us.
  listener.on("tlsClientError", (_error, socket) => refuse(socket));
  listener.maxConnections = limits.connectionsMax;
  listener.on("drop", onRefused);
  const bound = await listen(listener, host, port);
  return {
    port: bound,
    renew: (next) => listener.setSecureContext(secureContextOptions(tlsIdentity(next))),
    endRevoked: () => {
      for (const [socket, keyId] of members) if (isRevoked(keyId)) refuse(socket);
    },
    [Symbol.asyncDispose]: async () => {
      const closed = new Promise((resolve) => listener.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** Null for a caller without a certificate, or with one that OpenSSL did not believe. */
function provenKey(socket: tls.TLSSocket): string | null {
  const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined;
  return certificate === undefined ? null : keyIdOf(certificate.publicKey);
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
