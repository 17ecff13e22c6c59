// SPDX-License-Identifier: Apache-2.0
// A source that does not keep the protocol: a TCP server that answers each request as a test says.

import { once } from "node:events";
import net from "node:net";
import { frameBytes, writeFrame } from "../../src/transport/http-frame.ts";

export interface Hostile extends AsyncDisposable {
  readonly endpoint: string;
  /** Requests seen so far. */
  readonly requests: readonly string[];
}

/** `answer` is called once for each connection's first request. */
export async function hostileSource(answer: (socket: net.Socket) => void): Promise<Hostile> {
  const requests: string[] = [];
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {}); // The target hangs up on such a source; that is the point.
    socket.on("close", () => sockets.delete(socket));
    socket.once("data", (bytes) => {
      requests.push(bytes.toString("latin1").split("\r\n")[0] ?? "");
      answer(socket);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no address");
  return {
    endpoint: `http://127.0.0.1:${address.port}`,
    requests,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

export function okHead(contentLength: number, more = ""): string {
  return `HTTP/1.1 200 OK\r\nContent-Length: ${contentLength}\r\n${more}\r\n`;
}

export function framed(piece: number, bytes: Buffer, length = bytes.length): Buffer {
  const frame = Buffer.alloc(frameBytes);
  writeFrame(frame, 0, { piece, length, isRefused: false });
  return Buffer.concat([frame, bytes]);
}

/** Sends `bytes` one at a time, for as long as the other side listens. */
export function drip(socket: net.Socket, bytes: Buffer, everyMs: number): void {
  let at = 0;
  const timer = setInterval(() => {
    socket.write(bytes.subarray(at, at + 1));
    at = (at + 1) % bytes.length;
  }, everyMs);
  socket.on("close", () => clearInterval(timer));
}
