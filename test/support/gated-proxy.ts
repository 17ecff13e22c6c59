// SPDX-License-Identifier: Apache-2.0
// A TCP proxy in front of a source that lets everything through but requests for pieces, which wait until
// the test opens the gate: a transfer that is under way for as long as a test wants.

import { once } from "node:events";
import net from "node:net";

export interface GatedProxy extends AsyncDisposable {
  readonly url: string;
  /** Resolves when somebody has asked for pieces. */
  readonly asked: Promise<void>;
  open(): void;
}

/** @param target host:port, asked for at the first connection */
export async function gatedProxy(target: () => { port: number }): Promise<GatedProxy> {
  const gate = Promise.withResolvers<void>();
  const asked = Promise.withResolvers<void>();
  const sockets = new Set<net.Socket>();
  const server = net.createServer((client) => {
    const source = net.connect(target().port, "127.0.0.1");
    for (const socket of [client, source]) {
      sockets.add(socket);
      socket.on("error", () => undefined).on("close", () => sockets.delete(socket));
    }
    source.pipe(client);
    client.on("data", (bytes) => {
      const isGated = bytes.includes("/pieces");
      if (isGated) asked.resolve();
      void (isGated ? gate.promise : Promise.resolve()).then(() => source.write(bytes));
    });
    client.on("close", () => source.destroy());
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as net.AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    asked: asked.promise,
    open: () => gate.resolve(),
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
