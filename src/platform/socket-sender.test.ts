// SPDX-License-Identifier: Apache-2.0
// Real sockets and files: what goes past Node's stream arrives, and a full socket is no error.

import assert from "node:assert/strict";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import { describe, test } from "node:test";
import { temporaryFolder } from "../../test/support/temporary-folder.ts";
import { loadSocketSender } from "./socket-sender.ts";

const skip = (await loadSocketSender()) === null ? "no FFI package or glibc here" : false;
const bytes = Buffer.alloc(200_000, "kernel");

describe("SocketSender", { skip }, () => {
  test("send() and sendFile() put their bytes on the socket in order", async () => {
    using folder = temporaryFolder();
    await using pair = await connect();
    const file = open(folder, bytes);
    const { sender, descriptor } = pair;
    assert.equal(sender.send(descriptor, { bytes, length: 5, hasMore: true }), 5);
    const span = { offset: 100_000, length: 8_000 };
    assert.equal(sender.sendFile(descriptor, file, span), span.length);
    fs.closeSync(file);
    const wanted = Buffer.concat([bytes.subarray(0, 5), bytes.subarray(100_000, 108_000)]);
    assert.deepEqual(await pair.read(wanted.length), wanted);
  });

  test("both answer 0 while the socket is full, and nothing is lost", async () => {
    using folder = temporaryFolder();
    await using pair = await connect();
    const file = open(folder, bytes);
    const { sender, descriptor } = pair;
    let sent = 0;
    for (let step = 1; step > 0; sent += step)
      step = sender.sendFile(descriptor, file, { offset: 0, length: bytes.length });
    assert.equal(sender.send(descriptor, { bytes, length: bytes.length, hasMore: false }), 0);
    fs.closeSync(file);
    assert.equal((await pair.read(sent)).length, sent);
  });

  test("sendFile() tells a file that ends early, and both a broken connection", async () => {
    using folder = temporaryFolder();
    await using pair = await connect();
    const file = open(folder, bytes);
    const { sender, descriptor } = pair;
    assert.equal(sender.sendFile(descriptor, file, { offset: bytes.length, length: 1 }), -2);
    assert.equal(sender.send(-1, { bytes, length: 1, hasMore: false }), -1);
    assert.equal(sender.sendFile(-1, file, { offset: 0, length: 1 }), -1);
    fs.closeSync(file);
  });
});

function open(folder: ReturnType<typeof temporaryFolder>, content: Buffer): number {
  folder.write("file", content);
  return fs.openSync(folder.path("file"), "r");
}

async function connect() {
  const sender = await loadSocketSender();
  assert.ok(sender !== null);
  const server = net.createServer({ pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const near = net.connect(address.port, "127.0.0.1");
  const [far] = (await once(server, "connection")) as [net.Socket];
  const { _handle } = near as unknown as { readonly _handle: { readonly fd: number } };
  return {
    sender,
    descriptor: _handle.fd,
    read: async (length: number): Promise<Buffer> => {
      const parts: Buffer[] = [];
      let got = 0;
      for await (const part of far as AsyncIterable<Buffer>) {
        parts.push(part);
        got += part.length;
        if (got >= length) break;
      }
      return Buffer.concat(parts);
    },
    [Symbol.asyncDispose]: async () => {
      near.destroy();
      far.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
