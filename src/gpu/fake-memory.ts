// SPDX-License-Identifier: Apache-2.0
// The fake GPU's memory: each allocation is a file, so that another process can open it, by name as
// legacy IPC does or by descriptor as VMM does, and so that what a killed process had exported by
// descriptor stays. Addresses are made up, differ between processes and are never dereferenced.

import { randomBytes } from "node:crypto";
import { closeSync, ftruncateSync, openSync, readSync, rmSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { assert, RelightError } from "../errors.ts";
import type { DevicePtr, MemoryHandle, Sharing } from "./driver.ts";

/** What a fake kernel may do: read and write the fake GPU's memory. */
export interface FakeReach {
  read(address: DevicePtr, bytes: number): Buffer;
  write(address: DevicePtr, bytes: Uint8Array): void;
}

interface Piece {
  readonly file: number;
  readonly offset: number;
  readonly bytes: number;
}

/** One file, or several mapped one behind the other; slots change theirs. */
interface Range {
  readonly base: bigint;
  readonly bytes: number;
  pieces: readonly Piece[];
  /** The name that others open it by; only for `ipc` memory that this process created. */
  readonly path: string | null;
}

const spacing = 1n << 44n; // No allocation is this large, so an address names its allocation.

export class FakeMemory {
  readonly #directory: string;
  readonly #ranges = new Map<bigint, Range>();
  // Two processes must not agree on addresses by accident, or a test would miss a mixed-up pointer.
  #next = BigInt(1 + (randomBytes(2).readUInt16LE() % 256));

  constructor(directory: string) {
    this.#directory = directory;
  }

  create(bytes: number, sharing: Sharing): Range {
    const name = randomBytes(16).toString("hex");
    const path = join(this.#directory, `${process.pid}-${name}`);
    const file = openSync(path, "wx+", 0o600);
    ftruncateSync(file, bytes);
    if (sharing !== "ipc") rmSync(path);
    const kept = sharing === "ipc" ? path : null;
    return this.#add({ bytes, pieces: [{ file, offset: 0, bytes }], path: kept });
  }

  export(range: Range): MemoryHandle {
    if (range.path === null) {
      const pieces = range.pieces.map(({ file, bytes }) => ({
        descriptor: openSync(`/proc/self/fd/${file}`, "r+"),
        bytes,
      }));
      return { kind: "descriptor", pieces };
    }
    const handle = Buffer.alloc(64);
    handle.write(range.path.slice(this.#directory.length + 1));
    return { kind: "ipc", handle, bytes: range.bytes };
  }

  /** @throws device_handle_invalid */
  import(handle: MemoryHandle): Range {
    try {
      if (handle.kind === "ipc") return this.#openNamed(handle);
      return this.#openDescriptors(handle.pieces);
    } catch (cause) {
      if (cause instanceof RelightError) throw cause;
      throw new RelightError(
        "device_handle_invalid",
        `Cannot open a ${handle.kind} handle: its memory is gone`,
        { cause },
      );
    }
  }

  /** Slots that are all sinks: files without a name, as large as they need to be and no larger on disk. */
  reserveSlots(count: number, slotBytes: number): FakeSlots {
    const sinks = Array.from({ length: count }, () => this.create(slotBytes, "private"));
    for (const sink of sinks) this.#ranges.delete(sink.base / spacing);
    const pieces = sinks.map((sink, index) => ({
      file: fileOf(sink),
      offset: index * slotBytes,
      bytes: slotBytes,
    }));
    const range = this.#add({ bytes: count * slotBytes, pieces, path: null });
    return { range, slotBytes, sinks: pieces.map(({ file }) => file) };
  }

  /** @throws request_invalid, device_handle_invalid */
  fillSlot(slots: FakeSlots, index: number, handle: MemoryHandle): void {
    const { range, slotBytes } = slots;
    const isEmpty = range.pieces[index]?.file === slots.sinks[index];
    const bytes = handle.kind === "ipc" ? handle.bytes : sumBytes(handle.pieces);
    if (index >= slots.sinks.length || !isEmpty || bytes > slotBytes || handle.kind === "ipc") {
      throw new RelightError(
        "request_invalid",
        `Cannot map ${bytes} bytes into slot ${index} of ${slotBytes}: it is taken or does not fit`,
      );
    }
    const imported = this.import(handle);
    this.#ranges.delete(imported.base / spacing);
    const place = { file: fileOf(imported), offset: index * slotBytes, bytes };
    range.pieces = range.pieces.map((piece, other) => (other === index ? place : piece));
  }

  emptySlot({ range, sinks, slotBytes }: FakeSlots, index: number): void {
    const [piece, sink] = [range.pieces[index], sinks[index]];
    if (piece === undefined || sink === undefined || piece.file === sink) return;
    closeSync(piece.file);
    const place = { file: sink, offset: index * slotBytes, bytes: slotBytes };
    range.pieces = range.pieces.map((other, at) => (at === index ? place : other));
  }

  releaseSlots(slots: FakeSlots): void {
    for (const index of slots.sinks.keys()) this.emptySlot(slots, index);
    this.release(slots.range);
  }

  release(range: Range): void {
    this.#ranges.delete(range.base / spacing);
    for (const { file } of range.pieces) closeSync(file);
    if (range.path !== null) rmSync(range.path, { force: true });
  }

  read(address: DevicePtr, bytes: number): Buffer {
    const out = Buffer.alloc(bytes);
    this.#span(address, bytes, (file, at, from, to) => {
      readSync(file, out, from, to - from, at);
    });
    return out;
  }

  write(address: DevicePtr, bytes: Uint8Array): void {
    this.#span(address, bytes.byteLength, (file, at, from, to) => {
      writeSync(file, bytes, from, to - from, at);
    });
  }

  #openNamed(handle: Extract<MemoryHandle, { kind: "ipc" }>): Range {
    const name = Buffer.from(handle.handle).toString("latin1").replace(/\0+$/, "");
    const pid = /^(\d{1,10})-[0-9a-f]{32}$/.exec(name)?.[1];
    if (pid === undefined) throw new Error("not a handle");
    process.kill(Number(pid), 0); // The driver refuses handles of processes that are gone.
    const path = join(this.#directory, name);
    const file = openSync(path, "r+");
    const bytes = Math.min(handle.bytes, statSync(path).size);
    return this.#add({ bytes, pieces: [{ file, offset: 0, bytes }], path: null });
  }

  #openDescriptors(pieces: readonly { descriptor: number; bytes: number }[]): Range {
    let offset = 0;
    const opened = pieces.map(({ descriptor, bytes }) => {
      const piece = { file: openSync(`/proc/self/fd/${descriptor}`, "r+"), offset, bytes };
      offset += bytes;
      return piece;
    });
    return this.#add({ bytes: offset, pieces: opened, path: null });
  }

  #add(range: Omit<Range, "base">): Range {
    const key = this.#next++;
    const added = { ...range, base: key * spacing };
    this.#ranges.set(key, added);
    return added;
  }

  /** What the real GPU would answer with an illegal address, which ends the context. */
  #span(
    address: bigint,
    bytes: number,
    visit: (file: number, at: number, from: number, to: number) => void,
  ): void {
    const range = this.#ranges.get(address / spacing);
    const start = Number(address % spacing);
    if (range === undefined || start + bytes > range.bytes) {
      throw new RelightError(
        "device_lost",
        `Cannot reach ${bytes} bytes at 0x${address.toString(16)}: nothing is mapped there`,
      );
    }
    for (const piece of range.pieces) {
      const from = Math.max(start, piece.offset);
      const to = Math.min(start + bytes, piece.offset + piece.bytes);
      if (from < to) visit(piece.file, from - piece.offset, from - start, to - start);
    }
  }
}

export type FakeRange = Range;

export interface FakeSlots {
  readonly range: FakeRange;
  readonly slotBytes: number;
  /** One file for each slot. */
  readonly sinks: readonly number[];
}

/** Memory for a slot is one file: that is how this fake exports it. */
function fileOf(range: Range): number {
  const [piece] = range.pieces;
  assert(piece !== undefined && range.pieces.length === 1, "one allocation is one file");
  return piece.file;
}

function sumBytes(pieces: readonly { readonly bytes: number }[]): number {
  return pieces.reduce((sum, { bytes }) => sum + bytes, 0);
}
