// SPDX-License-Identifier: Apache-2.0
// The contract of src/gpu/driver.ts, which the real driver and the fake both pass. It needs a second
// process (gpu-exporter.ts), because a handle is only ever opened in another one.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test as register } from "node:test";
import { type Code, RelightError } from "../../src/errors.ts";
import { DescriptorListener, type DescriptorSocket } from "../../src/gpu/descriptor-socket.ts";
import {
  at,
  type ContextHandle,
  type GpuDriver,
  type MemoryHandle,
  type Sharing,
  type StreamHandle,
} from "../../src/gpu/driver.ts";
import type { FakeKernel } from "../../src/gpu/fake.ts";

const MiB = 2 ** 20;

/** PTX for any GPU since Ampere: out[i] = value for i < count. The driver compiles it as it loads. */
export const fillWordsPtx = Buffer.from(`.version 7.0
.target sm_80
.address_size 64
.visible .entry relight_contract_fill(.param .u64 out, .param .u32 value, .param .u32 count)
{
  .reg .pred %p<2>; .reg .b32 %r<6>; .reg .b64 %d<4>;
  ld.param.u64 %d1, [out]; ld.param.u32 %r1, [value]; ld.param.u32 %r2, [count];
  cvta.to.global.u64 %d1, %d1;
  mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x;
  mad.lo.s32 %r3, %r3, %r4, %r5;
  setp.ge.u32 %p1, %r3, %r2;
  @%p1 bra DONE;
  mul.wide.u32 %d2, %r3, 4; add.s64 %d3, %d1, %d2;
  st.global.u32 [%d3], %r1;
DONE: ret;
}
`);

/** The same kernel for the fake. */
export const fillWordsFake: FakeKernel = (memory, { params }) => {
  const [out, value, count] = params;
  assert(out !== undefined && "u64" in out);
  assert(value !== undefined && "u32" in value);
  assert(count !== undefined && "u32" in count);
  const words = new Uint32Array(count.u32).fill(value.u32);
  memory.write(out.u64 as Parameters<typeof memory.write>[0], Buffer.from(words.buffer));
};

export interface GpuContractOptions {
  readonly open: (directory: string) => GpuDriver;
  readonly backend: "cuda" | "fake";
  /** Why nothing can run here, or false. */
  readonly skip: string | false;
  /** Why two GPUs cannot be paired here, or false. */
  readonly pairSkip: string | false;
}

export function gpuContract({ open, backend, skip, pairSkip }: GpuContractOptions): void {
  describe(`gpu contract: ${backend}`, { timeout: 120_000 }, () => {
    // Each claim is skipped, not the suite, so that skips are counted one by one.
    const test = (claim: string, run: () => Promise<void> | void) => register(claim, { skip }, run);

    const wait = { signal: AbortSignal.timeout(120_000), deadlineMs: 20_000 };

    async function bench(run: (bench: Bench) => Promise<void>): Promise<void> {
      const directory = mkdtempSync(join(tmpdir(), "relight-gpu-"));
      const driver = open(directory);
      try {
        const { handle: context } = await driver.openContext(0);
        const stream = await driver.openStream(context);
        await run({ driver, context, stream, directory });
      } finally {
        await driver[Symbol.asyncDispose]();
        rmSync(directory, { recursive: true, force: true });
      }
    }

    test("devices() names at least one GPU with its memory and a UUID", async () => {
      await bench(async ({ driver }) => {
        const devices = await driver.devices();
        assert.ok(devices.length >= 1);
        for (const [index, device] of devices.entries()) {
          assert.equal(device.ordinal, index);
          assert.match(device.uuid, /^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
          assert.ok(device.memoryBytes >= MiB && device.arch >= 70 && device.name !== "");
        }
      });
    });

    test("openContext() refuses an ordinal that does not exist", async () => {
      await bench(async ({ driver }) => {
        await rejects(driver.openContext(999), "request_invalid");
        await rejects(driver.openContext(-1), "request_invalid");
      });
    });

    test("a byte written is the byte read, through upload, copy and fill, in order", async () => {
      await bench(async ({ driver, context, stream }) => {
        const from = await driver.allocate(context, { bytes: 4_096, sharing: "private" });
        const to = await driver.allocate(context, { bytes: 4_096, sharing: "private" });
        const bytes = new Uint8Array(1_000).map((_, index) => (index * 7) % 256);
        await driver.submit(stream, [
          { do: "fill", to: to.address, byte: 0xee, bytes: 4_096 },
          { do: "upload", to: at(from.address, 24), bytes },
          { do: "copy", to: at(to.address, 96), from: at(from.address, 24), bytes: 1_000 },
        ]);
        bytes.fill(0);
        const seen = await driver.read(stream, { address: to.address, bytes: 4_096 }, wait);
        assert.deepEqual(seen.subarray(0, 96), new Uint8Array(96).fill(0xee));
        assert.deepEqual(
          seen.subarray(96, 1_096),
          new Uint8Array(1_000).map((_, index) => (index * 7) % 256),
        );
        assert.deepEqual(seen.subarray(1_096), new Uint8Array(3_000).fill(0xee));
      });
    });

    test("many copies in one submit each do what they would do alone, and in order", async () => {
      await bench(async ({ driver, context, stream }) => {
        const count = 500;
        const from = await driver.allocate(context, { bytes: 64 * count, sharing: "private" });
        const to = await driver.allocate(context, { bytes: 64 * count, sharing: "private" });
        const bytes = new Uint8Array(64 * count).map((_, index) => (index * 31) % 251);
        const mirrored = Array.from({ length: count }, (_, index) => ({
          do: "copy" as const,
          to: at(to.address, 64 * index),
          from: at(from.address, 64 * (count - 1 - index)),
          bytes: index % 7 === 0 ? 0 : 1 + (index % 64),
        }));
        await driver.submit(stream, [
          { do: "upload", to: from.address, bytes },
          { do: "fill", to: to.address, byte: 0xee, bytes: to.bytes },
          ...mirrored,
          { do: "copy", to: to.address, from: from.address, bytes: 8 },
        ]);
        const seen = await driver.read(stream, { address: to.address, bytes: to.bytes }, wait);
        const wanted = new Uint8Array(64 * count).fill(0xee);
        mirrored.forEach((copy, index) => {
          const first = 64 * (count - 1 - index);
          wanted.set(bytes.subarray(first, first + copy.bytes), 64 * index);
        });
        wanted.set(bytes.subarray(0, 8));
        assert.deepEqual(seen, wanted);
      });
    });

    test("copy_rows moves the rows and leaves what lies between them", async () => {
      await bench(async ({ driver, context, stream }) => {
        const from = await driver.allocate(context, { bytes: 1_024, sharing: "private" });
        const to = await driver.allocate(context, { bytes: 1_024, sharing: "private" });
        await driver.submit(stream, [
          { do: "fill", to: from.address, byte: 1, bytes: 1_024 },
          { do: "fill", to: to.address, byte: 2, bytes: 1_024 },
          {
            do: "copy_rows",
            to: to.address,
            from: from.address,
            rowBytes: 10,
            rows: 4,
            toPitchBytes: 100,
            fromPitchBytes: 64,
          },
        ]);
        const seen = await driver.read(stream, { address: to.address, bytes: 400 }, wait);
        const wanted = new Uint8Array(400).map((_, index) => (index % 100 < 10 ? 1 : 2));
        assert.deepEqual(seen, wanted);
      });
    });

    test("shareHost() gives memory that the GPU reads and writes in the stream's order", async () => {
      await bench(async ({ driver, context, stream }) => {
        const { address } = await driver.allocate(context, { bytes: 8_192, sharing: "private" });
        const { handle: host, memory } = await driver.shareHost(context, 8_192);
        const done = await driver.openEvent(context);
        memory.set(new Uint8Array(4_096).map((_, index) => (index * 13) % 256));
        await driver.submit(stream, [
          { do: "from_host", to: at(address, 96), host, offsetBytes: 7, bytes: 1_000 },
          { do: "to_host", host, offsetBytes: 4_096, from: at(address, 100), bytes: 996 },
          { do: "from_host", to: address, host, offsetBytes: 0, bytes: 0 },
          { do: "record", event: done },
        ]);
        await driver.reach(done, wait);
        assert.deepEqual(memory.slice(4_096, 5_092), memory.slice(11, 1_007));
        await driver.close(host);
        await driver.close(host);
      });
    });

    test("a copy beyond shared host memory is refused before anything is enqueued", async () => {
      await bench(async ({ driver, context, stream }) => {
        const { address } = await driver.allocate(context, { bytes: 8_192, sharing: "private" });
        const { handle: host } = await driver.shareHost(context, 4_096);
        const beyond = { host, offsetBytes: 4_000, bytes: 97 };
        const into = { do: "from_host", to: address, ...beyond } as const;
        await rejects(driver.submit(stream, [into]), "request_invalid");
        const out = { do: "to_host", from: address, ...beyond } as const;
        await rejects(driver.submit(stream, [out]), "request_invalid");
      });
    });

    test("reach() waits for an event and for no more, and gives up at its deadline", async () => {
      await bench(async ({ driver, context, stream }) => {
        const event = await driver.openEvent(context);
        const never = new AbortController();
        never.abort();
        await driver.submit(stream, [{ do: "record", event }]);
        await driver.reach(event, wait);
        await driver.reach(event, wait);
        const other = await driver.openEvent(context);
        const bytes = (backend === "cuda" ? 512 : 2) * MiB;
        const { address } = await driver.allocate(context, { bytes, sharing: "private" });
        const fill = { do: "fill", to: address, byte: 1, bytes } as const;
        await driver.submit(stream, [...Array(20).fill(fill), { do: "record", event: other }]);
        await rejects(driver.reach(other, { ...wait, signal: never.signal }), "cancelled");
        await rejects(driver.reach(other, { ...wait, deadlineMs: 0 }), "deadline_exceeded");
        await driver.reach(other, wait);
      });
    });

    for (const [claim, isWhole] of [
      ["a pair of GPUs sends what the other receives, in order, both ways", true],
      ["an end of a pair that is closed ends the other's wait", false],
    ] as const) {
      register(claim, { skip: skip || pairSkip }, async () => {
        await bench(async ({ driver, context, stream }) => {
          const { handle: peer } = await driver.openContext(1);
          const id = await driver.pairId();
          assert.equal(id.byteLength, 128);
          const [one, other] = await Promise.all([
            driver.openPair(context, { id, rank: 0 }, wait),
            driver.openPair(peer, { id, rank: 1 }, wait),
          ]);
          const want = { bytes: 2 * MiB, sharing: "private" } as const;
          const [here, there] = await Promise.all([
            driver.allocate(context, want),
            driver.allocate(peer, want),
          ]);
          const peerStream = await driver.openStream(peer);
          const receive = [
            { do: "receive", address: there.address, bytes: MiB },
            { do: "receive", address: at(there.address, MiB), bytes: 100 },
          ] as const;
          if (!isWhole) {
            await driver.close(one);
            const short = { signal: wait.signal, deadlineMs: 2_000 };
            const waiting = driver
              .exchange(peerStream, other, { moves: receive, wait: short })
              .then(() => driver.finish(peerStream, short));
            await assert.rejects(waiting, (error) => {
              assert.ok(error instanceof RelightError);
              return ["source_unreachable", "deadline_exceeded"].includes(error.code);
            });
            await driver.close(other);
            return;
          }
          await driver.submit(stream, [
            { do: "fill", to: here.address, byte: 7, bytes: MiB },
            { do: "fill", to: at(here.address, MiB), byte: 9, bytes: MiB },
          ]);
          const send = receive.map(({ bytes }, index) => ({
            do: "send" as const,
            address: at(here.address, index * MiB),
            bytes,
          }));
          await Promise.all([
            driver.exchange(stream, one, { moves: send, wait }),
            driver.exchange(peerStream, other, { moves: receive, wait }),
          ]);
          const from = { address: at(there.address, MiB - 1), bytes: 101 };
          const seen = await driver.read(peerStream, from, wait);
          assert.deepEqual(seen, new Uint8Array(101).fill(9).fill(7, 0, 1));
          await Promise.all([
            driver.exchange(peerStream, other, {
              moves: [{ do: "send", address: there.address, bytes: 5 }],
              wait,
            }),
            driver.exchange(stream, one, {
              moves: [{ do: "receive", address: at(here.address, MiB), bytes: 5 }],
              wait,
            }),
          ]);
          const back = { address: at(here.address, MiB), bytes: 6 };
          const seenBack = await driver.read(stream, back, wait);
          assert.deepEqual(seenBack, Uint8Array.of(7, 7, 7, 7, 7, 9));
        });
      });
    }

    test("empty commands and empty reads are nothing", async () => {
      await bench(async ({ driver, context, stream }) => {
        const { address } = await driver.allocate(context, { bytes: 64, sharing: "private" });
        await driver.submit(stream, [
          { do: "copy", to: address, from: address, bytes: 0 },
          { do: "fill", to: address, byte: 1, bytes: 0 },
          { do: "upload", to: address, bytes: new Uint8Array(0) },
        ]);
        await driver.submit(stream, []);
        assert.equal((await driver.read(stream, { address, bytes: 0 }, wait)).byteLength, 0);
      });
    });

    test("allocate() says device_memory when the GPU has no room, and works after it", async () => {
      await bench(async ({ driver, context }) => {
        const { totalBytes } = await driver.room(context);
        const want = { bytes: 2 * totalBytes, sharing: "private" } as const;
        await rejects(driver.allocate(context, want), "device_memory");
        const { bytes } = await driver.allocate(context, { bytes: 4_096, sharing: "private" });
        assert.equal(bytes, 4_096);
      });
    });

    test("room() falls by what is allocated and comes back when it is closed", async () => {
      await bench(async ({ driver, context }) => {
        const before = await driver.room(context);
        // A quarter of the GPU, so that what other processes do meanwhile does not decide.
        const bytes = Math.floor(before.totalBytes / 4);
        const memory = await driver.allocate(context, { bytes, sharing: "descriptor" });
        const during = await driver.room(context);
        assert.ok(before.freeBytes - during.freeBytes >= bytes / 2);
        await driver.close(memory.id);
        const after = await driver.room(context);
        assert.ok(after.freeBytes - during.freeBytes >= bytes / 2);
      });
    });

    test("a handle is refused after close(), and closing twice is nothing", async () => {
      await bench(async ({ driver, context, stream }) => {
        const memory = await driver.allocate(context, { bytes: 64, sharing: "ipc" });
        await driver.close(memory.id);
        await driver.close(memory.id);
        await rejects(driver.exportMemory(memory.id), "handle_closed");
        await driver.close(stream);
        await rejects(driver.submit(stream, []), "handle_closed");
        await rejects(driver.finish(stream, wait), "handle_closed");
        await rejects(driver.room(stream as unknown as ContextHandle), "handle_closed");
        await driver.close(context);
        await rejects(driver.openStream(context), "handle_closed");
      });
    });

    test("an event makes one stream wait for another and tells the time between", async () => {
      await bench(async ({ driver, context, stream }) => {
        const other = await driver.openStream(context);
        const [began, ended] = [await driver.openEvent(context), await driver.openEvent(context)];
        const a = await driver.allocate(context, { bytes: 8 * MiB, sharing: "private" });
        const b = await driver.allocate(context, { bytes: 8 * MiB, sharing: "private" });
        for (let round = 1; round <= 5; round += 1) {
          await driver.submit(stream, [
            { do: "record", event: began },
            { do: "fill", to: a.address, byte: round, bytes: a.bytes },
            { do: "record", event: ended },
          ]);
          await driver.submit(other, [
            { do: "await", event: ended },
            { do: "copy", to: b.address, from: a.address, bytes: a.bytes },
          ]);
          const last = at(b.address, b.bytes - 4);
          const seen = await driver.read(other, { address: last, bytes: 4 }, wait);
          assert.deepEqual([...seen], [round, round, round, round]);
          assert.ok((await driver.elapsedMs(began, ended)) >= 0);
        }
      });
    });

    test("a wait is for the record before it, also when the event is recorded again", async () => {
      await bench(async ({ driver, context, stream }) => {
        const other = await driver.openStream(context);
        const event = await driver.openEvent(context);
        const memory = await driver.allocate(context, { bytes: 64 * MiB, sharing: "private" });
        const seen = await driver.allocate(context, { bytes: 256, sharing: "private" });
        const last = at(memory.address, memory.bytes - 4);
        // As in a transfer: everything is enqueued before anything is done.
        for (let round = 1; round <= 8; round += 1) {
          const fill = {
            do: "fill",
            to: memory.address,
            byte: round,
            bytes: memory.bytes,
          } as const;
          await driver.submit(stream, [fill, { do: "record", event }]);
          await driver.submit(other, [
            { do: "await", event },
            { do: "copy", to: at(seen.address, 4 * round), from: last, bytes: 4 },
          ]);
        }
        await driver.finish(stream, wait);
        const bytes = await driver.read(other, { address: seen.address, bytes: 36 }, wait);
        for (let round = 1; round <= 8; round += 1) {
          // A later fill may have come before the copy, an earlier one may not be seen.
          assert.ok((bytes[4 * round] ?? 0) >= round, `round ${round} saw ${bytes[4 * round]}`);
        }
      });
    });

    test("a kernel of a PTX module runs with its arguments", async () => {
      await bench(async ({ driver, context, stream }) => {
        const { kernel, memory } = await loadFill(driver, context);
        await driver.submit(stream, [launchFill(kernel, memory.address, 0xabcd1234, 1_000)]);
        const seen = await driver.read(stream, { address: memory.address, bytes: 4_096 }, wait);
        const words = new Uint32Array(seen.buffer, seen.byteOffset, 1_024);
        assert.ok(words.subarray(0, 1_000).every((word) => word === 0xabcd1234));
        assert.ok(words.subarray(1_000).every((word) => word === 0));
      });
    });

    test("a captured graph does its commands each time it is submitted, and not before", async () => {
      await bench(async ({ driver, context, stream }) => {
        const { kernel, memory } = await loadFill(driver, context);
        const graph = await driver.capture(stream, [
          launchFill(kernel, memory.address, 7, 512),
          { do: "copy", to: at(memory.address, 2_048), from: memory.address, bytes: 2_048 },
        ]);
        const where = { address: at(memory.address, 4_092), bytes: 4 };
        assert.deepEqual([...(await driver.read(stream, where, wait))], [0, 0, 0, 0]);
        for (let round = 0; round < 2; round += 1) {
          await driver.submit(stream, [
            { do: "fill", to: memory.address, byte: 0, bytes: 4_096 },
            { do: "graph", graph },
          ]);
          assert.deepEqual([...(await driver.read(stream, where, wait))], [7, 0, 0, 0]);
        }
        await driver.close(graph);
        await rejects(driver.submit(stream, [{ do: "graph", graph }]), "handle_closed");
      });
    });

    test("a module for another GPU and a kernel that is not there are device_unsupported", async () => {
      await bench(async ({ driver, context }) => {
        const newer = Buffer.from(fillWordsPtx.toString().replace("sm_80", "sm_999"));
        await rejects(driver.loadModule(context, newer), "device_unsupported");
        await rejects(driver.loadModule(context, Buffer.from("no module")), "device_unsupported");
        const module = await driver.loadModule(context, fillWordsPtx);
        await rejects(driver.kernel(module, "nobody", 0), "device_unsupported");
      });
    });

    test("finish() ends with the signal, and at once when it was given already", async () => {
      await bench(async ({ driver, context, stream }) => {
        const memory = await driver.allocate(context, { bytes: 512 * MiB, sharing: "private" });
        const fill = { do: "fill", to: memory.address, byte: 1, bytes: memory.bytes } as const;
        await driver.submit(
          stream,
          Array.from({ length: backend === "cuda" ? 200 : 2 }, () => fill),
        );
        const aborted = { signal: AbortSignal.abort(), deadlineMs: 10_000 };
        await rejects(driver.finish(stream, aborted), "cancelled");
        await rejects(driver.finish(stream, { ...wait, deadlineMs: 0 }), "deadline_exceeded");
        await driver.finish(stream, wait);
      });
    });

    test("private memory is not exported", async () => {
      await bench(async ({ driver, context }) => {
        const memory = await driver.allocate(context, { bytes: 4_096, sharing: "private" });
        await rejects(driver.exportMemory(memory.id), "request_invalid");
      });
    });

    for (const sharing of ["ipc", "descriptor"] as const) {
      test(`${sharing} memory of another process is read and written one-sided`, async () => {
        await bench(async (bench) => {
          const { driver, context, stream } = bench;
          await using other = await Exporter.start(backend, sharing, bench);
          const memory = await driver.importMemory(context, other.handle);
          const last = at(memory.address, exportedBytes - 4);
          const seen = await driver.read(stream, { address: last, bytes: 4 }, wait);
          assert.deepEqual([...seen], [0x5a, 0x5a, 0x5a, 0x5a]);
          await driver.submit(stream, [{ do: "fill", to: memory.address, byte: 3, bytes: 16 }]);
          const second = await driver.read(stream, { address: memory.address, bytes: 17 }, wait);
          assert.deepEqual([...second], [...new Uint8Array(16).fill(3), 0x5a]);
        });
      });

      test(`${sharing} memory stays readable after its exporter was killed`, async () => {
        await bench(async (bench) => {
          const { driver, context, stream } = bench;
          await using other = await Exporter.start(backend, sharing, bench);
          const memory = await driver.importMemory(context, other.handle);
          await other.kill();
          const seen = await driver.read(stream, { address: memory.address, bytes: 4 }, wait);
          assert.deepEqual([...seen], [0x5a, 0x5a, 0x5a, 0x5a]);
        });
      });
    }

    test("a slot keeps its address, holds one memory at a time and is a sink when empty", async () => {
      await bench(async (bench) => {
        const { driver, context, stream } = bench;
        await using other = await Exporter.start(backend, "descriptor", bench);
        const want = { count: 3, slotBytes: exportedBytes };
        const slots = await driver.reserveSlots(context, want);
        assert.ok(slots.slotBytes >= exportedBytes && slots.count === 3);
        const place = at(slots.address, slots.slotBytes);
        const store = { do: "fill", to: place, byte: 7, bytes: exportedBytes } as const;
        await driver.submit(stream, [store]);
        await driver.finish(stream, wait);
        await driver.fillSlot(slots.id, 1, other.handle);
        const seen = async () =>
          await driver.read(stream, { address: at(place, exportedBytes - 4), bytes: 4 }, wait);
        assert.deepEqual([...(await seen())], [0x5a, 0x5a, 0x5a, 0x5a]);
        await rejects(driver.fillSlot(slots.id, 1, other.handle), "request_invalid");
        await rejects(driver.fillSlot(slots.id, 3, other.handle), "request_invalid");
        await other.kill();
        assert.deepEqual([...(await seen())], [0x5a, 0x5a, 0x5a, 0x5a]);
        const kept = await driver.importMemory(context, other.handle);
        await driver.emptySlot(slots.id, 1);
        await driver.emptySlot(slots.id, 1);
        await driver.submit(stream, [store]);
        const last = at(kept.address, exportedBytes - 4);
        const mine = await driver.read(stream, { address: last, bytes: 4 }, wait);
        assert.deepEqual(
          [...mine],
          [0x5a, 0x5a, 0x5a, 0x5a],
          "a store into an empty slot ends there",
        );
        await driver.fillSlot(slots.id, 1, other.handle);
        assert.deepEqual([...(await seen())], [0x5a, 0x5a, 0x5a, 0x5a]);
        await driver.close(slots.id);
        await rejects(driver.emptySlot(slots.id, 1), "handle_closed");
      });
    });

    test("an ipc handle of a process that is gone is device_handle_invalid", async () => {
      await bench(async (bench) => {
        const { driver, context } = bench;
        await using other = await Exporter.start(backend, "ipc", bench);
        await other.kill();
        await rejects(driver.importMemory(context, other.handle), "device_handle_invalid");
        const { freeBytes } = await driver.room(context);
        assert.ok(freeBytes > 0);
      });
    });

    test("bytes that are no handle are device_handle_invalid", async () => {
      await bench(async ({ driver, context }) => {
        const handle = { kind: "ipc", handle: new Uint8Array(64).fill(9), bytes: 4_096 } as const;
        await rejects(driver.importMemory(context, handle), "device_handle_invalid");
      });
    });
  });
}

interface Bench {
  readonly driver: GpuDriver;
  readonly context: ContextHandle;
  readonly stream: StreamHandle;
  readonly directory: string;
}

const exportedBytes = 4 * MiB;

/** A process that has exported memory full of 0x5a. */
class Exporter implements AsyncDisposable {
  readonly handle: MemoryHandle;
  readonly #process: ChildProcess;
  readonly #socket: DescriptorSocket;

  private constructor(process: ChildProcess, socket: DescriptorSocket, handle: MemoryHandle) {
    this.#process = process;
    this.#socket = socket;
    this.handle = handle;
  }

  static async start(backend: string, sharing: Sharing, bench: Bench): Promise<Exporter> {
    const path = join(bench.directory, "exporter.sock");
    const { promise, resolve } = Promise.withResolvers<DescriptorSocket>();
    using _listener = new DescriptorListener(path, resolve);
    const script = join(import.meta.dirname, "gpu-exporter.ts");
    const words = [backend, sharing, `${exportedBytes}`, `${0x5a}`, path, "0", bench.directory];
    const process = spawn(globalThis.process.execPath, [script, ...words], { stdio: "inherit" });
    const failed = once(process, "exit").then(([code]) => {
      throw new Error(`The exporter ended with ${code} before it connected`);
    });
    const socket = await Promise.race([promise, failed]);
    const { body, descriptors } = await socket.receive(AbortSignal.timeout(30_000));
    return new Exporter(process, socket, handleOf(JSON.parse(body.toString()), descriptors));
  }

  async kill(): Promise<void> {
    const ended = once(this.#process, "exit");
    this.#process.kill("SIGKILL");
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.handle.kind === "descriptor") {
      for (const { descriptor } of this.handle.pieces) closeSync(descriptor);
    }
    this.#socket.close();
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      await once(this.#process, "exit");
    }
  }
}

function handleOf(
  body: { kind: string; handle: string; bytes: number | number[] },
  descriptors: readonly number[],
): MemoryHandle {
  if (typeof body.bytes === "number") {
    return { kind: "ipc", handle: Buffer.from(body.handle, "hex"), bytes: body.bytes };
  }
  const bytes = body.bytes;
  const pieces = descriptors.map((descriptor, index) => ({ descriptor, bytes: bytes[index] ?? 0 }));
  return { kind: "descriptor", pieces };
}

async function loadFill(driver: GpuDriver, context: ContextHandle) {
  const memory = await driver.allocate(context, { bytes: 4_096, sharing: "private" });
  const module = await driver.loadModule(context, fillWordsPtx);
  const kernel = await driver.kernel(module, "relight_contract_fill", 0);
  const stream = await driver.openStream(context);
  await driver.submit(stream, [{ do: "fill", to: memory.address, byte: 0, bytes: 4_096 }]);
  await driver.finish(stream, { signal: AbortSignal.timeout(20_000), deadlineMs: 20_000 });
  return { kernel, memory };
}

function launchFill(
  kernel: Awaited<ReturnType<GpuDriver["kernel"]>>,
  out: bigint,
  value: number,
  count: number,
) {
  return {
    do: "launch",
    kernel,
    grid: [4, 1, 1],
    block: [256, 1, 1],
    sharedBytes: 0,
    cooperative: false,
    params: [{ u64: out }, { u32: value }, { u32: count }],
  } as const;
}

async function rejects(promise: Promise<unknown>, code: Code): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof RelightError, String(error));
    assert.equal(error.code, code, error.message);
    return true;
  });
}
