// SPDX-License-Identifier: Apache-2.0
// A TCP proxy that stops at a moment of the test's choosing: what a client sends is passed on until it
// matches, or what the source sends until it is enough; then nothing is, until the test says so. So a test
// knows in which phase the other side is.

import net from "node:net";

export interface HoldingProxy extends AsyncDisposable {
  readonly port: number;
  /** Resolves when something that matches has arrived, and is held. */
  held(pattern: RegExp): Promise<void>;
  /** The source's answers stop after about so many bytes, over all connections. */
  stopAfter(bytes: number): void;
  /** Passes on what is held and everything after. */
  release(): void;
}

export async function holdingProxy(targetPort: () => number): Promise<HoldingProxy> {
  const sockets = new Set<net.Socket>();
  const heldClients = new Set<net.Socket>();
  let pattern: RegExp | null = null;
  let onHeld: () => void = () => {};
  let waiting: (() => void)[] = [];
  let answerBytesLeft = Number.POSITIVE_INFINITY;
  const server = net.createServer((client) => {
    const upstream = net.connect(targetPort(), "127.0.0.1");
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
    upstream.on("data", (bytes) => {
      answerBytesLeft -= bytes.length;
      client.write(bytes);
      if (answerBytesLeft > 0) return;
      upstream.pause();
      waiting.push(() => upstream.resume());
    });
    client.on("data", (bytes) => {
      const pass = () => void upstream.write(bytes);
      if (!heldClients.has(client) && pattern?.test(bytes.toString("latin1")) === true) {
        heldClients.add(client);
        pattern = null;
        onHeld();
      }
      if (heldClients.has(client)) waiting.push(pass);
      else pass();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as net.AddressInfo).port,
    held: (wanted) => {
      pattern = wanted;
      return new Promise((resolve) => {
        onHeld = resolve;
      });
    },
    stopAfter: (bytes) => {
      answerBytesLeft = bytes;
    },
    release: () => {
      answerBytesLeft = Number.POSITIVE_INFINITY;
      heldClients.clear();
      for (const pass of waiting) pass();
      waiting = [];
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
