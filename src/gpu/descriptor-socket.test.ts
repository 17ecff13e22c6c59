// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type Code, RelightError } from "../errors.ts";
import { DescriptorListener, DescriptorSocket } from "./descriptor-socket.ts";
import { libc } from "./libc.ts";

const signal = AbortSignal.timeout(20_000);

describe("descriptor socket", { timeout: 20_000 }, () => {
  test("send() passes a body larger than the kernel's buffer, and files beyond one carrier", async () => {
    await pair(async ({ near, far, directory }) => {
      const path = join(directory, "file");
      writeFileSync(path, "light");
      const file = openSync(path, "r");
      const body = Buffer.alloc(3_000_000, "abc");
      await near.send({ body, descriptors: Array.from({ length: 501 }, () => file) });
      const got = await far.receive(signal);
      assert.ok(got.body.equals(body));
      assert.equal(new Set(got.descriptors).size, 501);
      const bytes = Buffer.alloc(5);
      readSync(got.descriptors[500] ?? -1, bytes, 0, 5, 0);
      assert.equal(bytes.toString(), "light");
      for (const descriptor of [...got.descriptors, file]) closeSync(descriptor);
    });
  });

  test("messages arrive in order, each with its own files", async () => {
    await pair(async ({ near, far, directory }) => {
      const sent = ["one", "two", "three"].map((text) => {
        writeFileSync(join(directory, text), text);
        const file = openSync(join(directory, text), "r");
        return { done: near.send({ body: Buffer.from(text), descriptors: [file] }), file };
      });
      for (const text of ["one", "two", "three"]) {
        const { body, descriptors } = await far.receive(signal);
        const bytes = Buffer.alloc(5);
        const count = readSync(descriptors[0] ?? -1, bytes, 0, 5, 0);
        assert.equal(body.toString(), text);
        assert.equal(bytes.toString("utf8", 0, count), text);
        closeSync(descriptors[0] ?? -1);
      }
      for (const { done, file } of sent) {
        await done;
        closeSync(file);
      }
    });
  });

  test("receive() ends by its signal, and by the other end's death", async () => {
    await pair(async ({ near, far }) => {
      await rejects(far.receive(AbortSignal.timeout(10)), "cancelled");
      const waiting = far.receive(signal);
      near.close();
      await rejects(waiting, "source_unreachable");
      await rejects(far.receive(signal), "source_unreachable");
      await rejects(near.send({ body: Buffer.from("x"), descriptors: [] }), "cancelled");
    });
  });

  test("receive() ends when the other end dies before it has read what was sent", async () => {
    await withDirectory(async (directory) => {
      const { listener, accepted } = listen(directory);
      const system = libc();
      const dying = system.openSocket();
      const address = Buffer.concat([
        Buffer.from([1, 0]),
        Buffer.from(listener.path),
        Buffer.alloc(1),
      ]);
      assert.equal(system.connect(dying, address), 0);
      const socket = await accepted;
      const waiting = socket.receive(signal);
      await socket.send({ body: Buffer.alloc(1_000), descriptors: [] });
      // The kernel tells us by an error then, not by an end.
      system.close(dying);
      await rejects(waiting, "source_unreachable");
      listener.close();
    });
  });

  test("a length beyond the limit ends the connection before anything is stored", async () => {
    await withDirectory(async (directory) => {
      const { listener, accepted } = listen(directory);
      const client = connect(listener.path);
      const header = Buffer.alloc(8);
      header.writeUInt32LE(0xffff_ffff, 0);
      client.write(header);
      await rejects((await accepted).receive(signal), "source_protocol");
      client.destroy();
      listener.close();
    });
  });

  test("promised files that do not come are source_protocol", async () => {
    await withDirectory(async (directory) => {
      const { listener, accepted } = listen(directory);
      const client = connect(listener.path);
      const frame = Buffer.alloc(8 + 1 + 1);
      frame.writeUInt32LE(1, 0);
      frame.writeUInt32LE(1, 4);
      client.write(frame);
      await rejects((await accepted).receive(signal), "source_protocol");
      client.destroy();
      listener.close();
    });
  });

  test("the socket is for its user only, and its path is free again after close()", async () => {
    await withDirectory(async (directory) => {
      const { listener } = listen(directory);
      assert.equal(statSync(listener.path).mode & 0o777, 0o600);
      assert.throws(() => listen(directory), { code: "port_in_use" });
      listener.close();
      listener.close();
      listen(directory).listener.close();
    });
  });

  test("connect() and listen refuse what is not there and what is too long", async () => {
    await withDirectory(async (directory) => {
      assert.throws(() => DescriptorSocket.connect(join(directory, "none")), {
        code: "source_unreachable",
      });
      assert.throws(() => DescriptorSocket.connect("x".repeat(108)), { code: "request_invalid" });
    });
  });
});

interface Pair {
  readonly near: DescriptorSocket;
  readonly far: DescriptorSocket;
  readonly directory: string;
}

async function pair(run: (pair: Pair) => Promise<void>): Promise<void> {
  await withDirectory(async (directory) => {
    const { listener, accepted } = listen(directory);
    using near = DescriptorSocket.connect(listener.path);
    using far = await accepted;
    listener.close();
    await run({ near, far, directory });
  });
}

function listen(directory: string) {
  const { promise, resolve } = Promise.withResolvers<DescriptorSocket>();
  return {
    listener: new DescriptorListener(join(directory, "s"), resolve),
    accepted: promise,
  };
}

async function withDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "relight-socket-"));
  try {
    await run(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function rejects(promise: Promise<unknown>, code: Code): Promise<void> {
  await assert.rejects(promise, (error) => error instanceof RelightError && error.code === code);
}
