// SPDX-License-Identifier: Apache-2.0
// Digests of byte ranges of GPU memory, by our kernel. It owns the kernel's scratch memory and the
// layout of its arguments; what the ranges mean is the caller's. The bits: digest-reference.ts.

import { assert, RelightError } from "../errors.ts";
import { abi, structBytes, wordOf, writeStruct } from "./abi.ts";
import {
  at,
  type Command,
  type ContextHandle,
  type DevicePtr,
  type GpuDriver,
  type GpuMemory,
  type HostMemory,
  type KernelHandle,
  type ModuleHandle,
} from "./driver.ts";

export interface DigestSegment {
  readonly address: DevicePtr;
  /** At least 1: a range without bytes has no digest of its own. */
  readonly bytes: number;
}

const threads = 256;
const blocksPerMultiprocessor = 4;
const segmentBytes = structBytes("RelightDigestSegment");
const digestBytes = 16;

/** Bound to one context and used for one stream at a time. */
export class GpuDigester implements AsyncDisposable {
  readonly segmentCountMax: number;
  readonly #driver: GpuDriver;
  readonly #module: ModuleHandle;
  readonly #sum: KernelHandle;
  readonly #finish: KernelHandle;
  readonly #scratch: GpuMemory;
  /** Laid out as the scratch memory is: tables go up from here, digests come down to here. */
  readonly #host: HostMemory;
  readonly #blocks: number;

  private constructor(fields: {
    driver: GpuDriver;
    module: ModuleHandle;
    sum: KernelHandle;
    finish: KernelHandle;
    scratch: GpuMemory;
    host: HostMemory;
    blocks: number;
    segmentCountMax: number;
  }) {
    this.#driver = fields.driver;
    this.#module = fields.module;
    this.#sum = fields.sum;
    this.#finish = fields.finish;
    this.#scratch = fields.scratch;
    this.#host = fields.host;
    this.#blocks = fields.blocks;
    this.segmentCountMax = fields.segmentCountMax;
  }

  /**
   * @param image the module with `relight_digest` and `relight_digest_finish`.
   * @throws device_unsupported, device_memory
   */
  static async open(
    driver: GpuDriver,
    context: { readonly handle: ContextHandle; readonly multiprocessorCount: number },
    options: { readonly image: Uint8Array; readonly segmentCountMax: number },
  ): Promise<GpuDigester> {
    const { segmentCountMax } = options;
    const module = await driver.loadModule(context.handle, options.image);
    const bytes = segmentCountMax * (segmentBytes + digestBytes);
    const [sum, finish, scratch, host] = await Promise.all([
      driver.kernel(module, "relight_digest", 0),
      driver.kernel(module, "relight_digest_finish", 0),
      driver.allocate(context.handle, { bytes, sharing: "private" }),
      driver.shareHost(context.handle, bytes),
    ]);
    const blocks = blocksPerMultiprocessor * context.multiprocessorCount;
    return new GpuDigester({ driver, module, sum, finish, scratch, host, blocks, segmentCountMax });
  }

  /**
   * Commands that digest the segments into places `first`, `first + 1` … of the results, in this order.
   * `prepare` waits for nothing, `collect` brings the digests to where `collected` finds them. Several
   * calls may be in flight as long as their places differ; a place is used once.
   */
  commands(
    segments: readonly DigestSegment[],
    { seed, first }: { readonly seed: bigint; readonly first: number },
  ): {
    readonly prepare: readonly Command[];
    readonly run: readonly Command[];
    readonly collect: readonly Command[];
  } {
    if (segments.length === 0) return { prepare: [], run: [], collect: [] };
    if (first + segments.length > this.segmentCountMax) {
      throw new RelightError(
        "request_invalid",
        `Cannot digest ${first + segments.length} segments: at most ${this.segmentCountMax}`,
      );
    }
    const offsetBytes = first * segmentBytes;
    const { buffer, byteOffset } = this.#host.memory;
    const words = new BigUint64Array(
      buffer,
      byteOffset + offsetBytes,
      segments.length * segmentWords,
    );
    const chunkCount = writeTable(segments, words);
    const tableAt = at(this.#scratch.address, offsetBytes);
    const out = this.#outAt(first);
    const args = Buffer.alloc(structBytes("RelightDigestArgs"));
    const values = {
      segments: tableAt,
      out,
      seed,
      chunk_count: BigInt(chunkCount),
      segment_count: BigInt(segments.length),
      reserved: 0n,
    };
    writeStruct("RelightDigestArgs", values, { bytes: args, offset: 0 });
    const blocks = Math.min(this.#blocks, chunkCount);
    const { handle: host } = this.#host;
    const outBytes = segments.length * digestBytes;
    return {
      prepare: [
        { do: "from_host", to: tableAt, host, offsetBytes, bytes: words.byteLength },
        { do: "fill", to: out, byte: 0, bytes: outBytes },
      ],
      run: [
        launch(this.#sum, blocks, args),
        launch(this.#finish, Math.ceil(segments.length / threads), args),
      ],
      collect: [
        { do: "to_host", host, offsetBytes: this.#outOffset(first), from: out, bytes: outBytes },
      ],
    };
  }

  /**
   * What `collect` has brought, once the stream has come behind it: 32 hex characters each, the low word
   * before the high one.
   */
  collected({ first, count }: { readonly first: number; readonly count: number }): string[] {
    const from = this.#outOffset(first);
    // Copied out of memory that the GPU writes: what is turned around here must be ours alone.
    const bytes = Buffer.from(this.#host.memory.slice(from, from + count * digestBytes));
    // formatDigest() of each, without a bigint for each: halves written with the high byte first.
    const digits = bytes.swap64().toString("hex");
    const length = 2 * digestBytes;
    return Array.from({ length: count }, (_, index) =>
      digits.slice(index * length, (index + 1) * length),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#driver.close(this.#scratch.id);
    await this.#driver.close(this.#host.handle);
    await this.#driver.close(this.#module);
  }

  #outAt(place: number): DevicePtr {
    return at(this.#scratch.address, this.#outOffset(place));
  }

  #outOffset(place: number): number {
    return this.segmentCountMax * segmentBytes + place * digestBytes;
  }
}

const segmentWords = segmentBytes / 8;
const addressWord = wordOf("RelightDigestSegment", "address");
const bytesWord = wordOf("RelightDigestSegment", "bytes");
const chunkWord = wordOf("RelightDigestSegment", "first_chunk");

/** @returns how many chunks the segments have */
function writeTable(segments: readonly DigestSegment[], table: BigUint64Array): number {
  let chunkCount = 0;
  let next = 0;
  for (const { address, bytes } of segments) {
    assert(bytes > 0, "a digest segment has bytes");
    table[next + addressWord] = address;
    table[next + bytesWord] = BigInt(bytes);
    table[next + chunkWord] = BigInt(chunkCount);
    chunkCount += Math.ceil(bytes / abi.constants.RELIGHT_DIGEST_CHUNK);
    next += segmentWords;
  }
  return chunkCount;
}

function launch(kernel: KernelHandle, blocks: number, args: Buffer): Command {
  return {
    do: "launch",
    kernel,
    grid: [blocks, 1, 1],
    block: [threads, 1, 1],
    sharedBytes: 0,
    cooperative: false,
    params: [{ struct: args }],
  };
}
