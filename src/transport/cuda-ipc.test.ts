// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { closeSync, fstatSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type Code, RelightError } from "../errors.ts";
import { DescriptorListener, DescriptorSocket } from "../gpu/descriptor-socket.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import { type HandleCall, HandleClient, HandleServer, type HandleSession } from "./cuda-ipc.ts";

const signal = AbortSignal.timeout(20_000);
const ipc: MemoryHandle = { kind: "ipc", handle: Buffer.alloc(64, 7), bytes: 4_096 };

describe("handle calls", { timeout: 20_000 }, () => {
  test("arguments, values and handles of both kinds arrive as they were given", async () => {
    await serving(
      { call: async ({ args, handles }) => ({ value: { args }, handles }), end: () => undefined },
      async (path) => {
        const files = [openSync("/", "r"), openSync("/", "r")];
        const mapped: MemoryHandle = {
          kind: "descriptor",
          pieces: files.map((descriptor, index) => ({ descriptor, bytes: index + 1 })),
        };
        using client = HandleClient.connect(path);
        const given = { op: "echo", args: { deep: [1, null, "ä"] }, handles: [ipc, mapped, ipc] };
        const { value, handles } = await client.call(given, signal);
        assert.deepEqual(value, { args: given.args });
        assert.deepEqual(handles[0], ipc);
        const [, back] = handles;
        assert.ok(back?.kind === "descriptor");
        assert.deepEqual(
          back.pieces.map(({ bytes }) => bytes),
          [1, 2],
        );
        for (const { descriptor } of back.pieces) {
          assert.equal(fstatSync(descriptor).ino, fstatSync(files[0] ?? -1).ino);
        }
        for (const file of files) closeSync(file);
      },
    );
  });

  test("a session's error arrives with its code and details, and the next call works", async () => {
    const details = { mutated: true, tensors: 3 };
    await serving(
      {
        call: async ({ op }) => {
          if (op === "fail") throw new RelightError("source_busy", "Cannot: busy", { details });
          return { value: op, handles: [] };
        },
        end: () => undefined,
      },
      async (path) => {
        using client = HandleClient.connect(path);
        const failing = client.call({ op: "fail", args: {}, handles: [] }, signal);
        await assert.rejects(failing, (error) => {
          assert.ok(error instanceof RelightError);
          assert.equal(error.code, "source_busy");
          assert.deepEqual(error.details, details);
          return true;
        });
        const { value } = await client.call({ op: "next", args: {}, handles: [] }, signal);
        assert.equal(value, "next");
      },
    );
  });

  test("a caller's end stops its call under way and ends its session once", async () => {
    const called = Promise.withResolvers<void>();
    const stopped = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<void>();
    let endCount = 0;
    const call = async (_: HandleCall, gone: AbortSignal) => {
      called.resolve();
      await new Promise((resolve) => gone.addEventListener("abort", resolve, { once: true }));
      stopped.resolve();
      return { value: null, handles: [] };
    };
    const end = () => {
      endCount += 1;
      ended.resolve();
    };
    await serving({ call, end }, async (path) => {
      const client = HandleClient.connect(path);
      const waiting = client.call({ op: "wait", args: {}, handles: [] }, signal);
      await called.promise;
      client[Symbol.dispose]();
      await rejects(waiting, "cancelled");
      await stopped.promise;
      await ended.promise;
      assert.equal(endCount, 1);
    });
  });

  const hostile: readonly (readonly [string, string, number])[] = [
    ["no JSON", "{", 0],
    ["no call", '{"value":1}', 0],
    [
      "a handle of the wrong length",
      '{"op":"x","args":{},"handles":[{"kind":"ipc","handle":"00","bytes":1}]}',
      0,
    ],
    [
      "memory without bytes",
      `{"op":"x","args":{},"handles":[{"kind":"descriptor","pieces":[0]}]}`,
      1,
    ],
    [
      "fewer descriptors than promised",
      '{"op":"x","args":{},"handles":[{"kind":"descriptor","pieces":[1,1]}]}',
      1,
    ],
    ["more descriptors than promised", '{"op":"x","args":{},"handles":[]}', 1],
  ];
  for (const [what, body, descriptorCount] of hostile) {
    test(`${what} is answered with an error and reaches no session`, async () => {
      const reached: HandleCall[] = [];
      const call: HandleSession["call"] = async (one) => {
        reached.push(one);
        return { value: null, handles: [] };
      };
      await serving({ call, end: () => undefined }, async (path) => {
        using socket = DescriptorSocket.connect(path);
        const file = openSync("/", "r");
        const descriptors = Array.from({ length: descriptorCount }, () => file);
        await socket.send({ body: Buffer.from(body), descriptors });
        closeSync(file);
        const answer = JSON.parse((await socket.receive(signal)).body.toString());
        assert.ok("error" in answer, JSON.stringify(answer));
        assert.deepEqual(reached, []);
      });
    });
  }

  test("an answer that is none, and one with a code nobody knows, are source_protocol", async () => {
    for (const body of [
      "{",
      '{"neither":1}',
      '{"error":{"code":"made_up","message":"m","details":{}}}',
    ]) {
      await withDirectory(async (directory) => {
        using listener = new DescriptorListener(join(directory, "s"), (socket) => {
          void socket
            .receive(signal)
            .then(() => socket.send({ body: Buffer.from(body), descriptors: [] }));
        });
        using client = HandleClient.connect(listener.path);
        await rejects(client.call({ op: "x", args: {}, handles: [] }, signal), "source_protocol");
      });
    }
  });
});

async function serving(
  session: HandleSession,
  act: (path: string) => Promise<void>,
): Promise<void> {
  await withDirectory(async (directory) => {
    using server = new HandleServer(join(directory, "s"), () => session);
    await act(server.path);
  });
}

async function withDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "relight-handles-"));
  try {
    await run(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function rejects(promise: Promise<unknown>, code: Code): Promise<void> {
  await assert.rejects(promise, (error) => error instanceof RelightError && error.code === code);
}
