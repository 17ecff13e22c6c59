// SPDX-License-Identifier: Apache-2.0
// The other process of the GPU contract: allocates, fills with a byte, exports, and lives until it is
// told to go or killed. Arguments: backend, sharing, bytes, byte, socket path, device, directory.

import { CudaDriver } from "../../src/gpu/cuda.ts";
import { DescriptorSocket } from "../../src/gpu/descriptor-socket.ts";
import type { GpuDriver, Sharing } from "../../src/gpu/driver.ts";
import { FakeDriver } from "../../src/gpu/fake.ts";

const [backend, sharing, bytes, byte, path = "", ordinal, directory = ""] = process.argv.slice(2);
const signal = AbortSignal.timeout(60_000);

const driver: GpuDriver = backend === "cuda" ? new CudaDriver() : new FakeDriver({ directory });
const context = await driver.openContext(Number(ordinal));
const stream = await driver.openStream(context.handle);
const memory = await driver.allocate(context.handle, {
  bytes: Number(bytes),
  sharing: sharing as Sharing,
});
await driver.submit(stream, [
  { do: "fill", to: memory.address, byte: Number(byte), bytes: memory.bytes },
]);
await driver.finish(stream, { signal, deadlineMs: 30_000 });
const handle = await driver.exportMemory(memory.id);

using socket = DescriptorSocket.connect(path);
await socket.send(
  handle.kind === "ipc"
    ? {
        body: Buffer.from(
          JSON.stringify({ ...handle, handle: Buffer.from(handle.handle).toString("hex") }),
        ),
        descriptors: [],
      }
    : {
        body: Buffer.from(
          JSON.stringify({ kind: handle.kind, bytes: handle.pieces.map((p) => p.bytes) }),
        ),
        descriptors: handle.pieces.map((piece) => piece.descriptor),
      },
);
await socket.receive(signal).catch(() => undefined);
await driver[Symbol.asyncDispose]();
process.exit(0);
