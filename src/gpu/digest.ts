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
  type KernelHandle,
  type ModuleHandle,
  type StreamHandle,
  type Wait,
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
  readonly #blocks: number;

  private constructor(fields: {
    driver: GpuDriver;
    module: ModuleHandle;
    sum: KernelHandle;
    finish: KernelHandle;
    scratch: GpuMemory;
    blocks: number;
    segmentCountMax: number;
  }) {
    this.#driver = fields.driver;
    this.#module = fields.module;
    this.#sum = fields.sum;
    this.#finish = fields.finish;
    this.#scratch = fields.scratch;
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
    const scratchBytes = segmentCountMax * (segmentBytes + digestBytes);
    return new GpuDigester({
      driver,
      module,
      sum: await driver.kernel(module, "relight_digest", 0),
      finish: await driver.kernel(module, "relight_digest_finish", 0),
      scratch: await driver.allocate(context.handle, { bytes: scratchBytes, sharing: "private" }),
      blocks: blocksPerMultiprocessor * context.multiprocessorCount,
      segmentCountMax,
    });
  }

  /**
   * Commands that digest the segments into places `first`, `first + 1` … of the results. `prepare` must
   * be done before `run` begins and waits for nothing itself: a stream of its own keeps it from standing
   * behind what `run` waits for. Several calls may be in flight as long as their places differ.
   */
  commands(
    segments: readonly DigestSegment[],
    { seed, first }: { readonly seed: bigint; readonly first: number },
  ): { readonly prepare: readonly Command[]; readonly run: readonly Command[] } {
    if (segments.length === 0) return { prepare: [], run: [] };
    if (first + segments.length > this.segmentCountMax) {
      throw new RelightError(
        "request_invalid",
        `Cannot digest ${first + segments.length} segments: at most ${this.segmentCountMax}`,
      );
    }
    const { table, chunkCount } = tableOf(segments);
    const tableAt = at(this.#scratch.address, first * segmentBytes);
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
    return {
      prepare: [
        { do: "upload", to: tableAt, bytes: table },
        { do: "fill", to: out, byte: 0, bytes: segments.length * digestBytes },
      ],
      run: [
        launch(this.#sum, blocks, args),
        launch(this.#finish, Math.ceil(segments.length / threads), args),
      ],
    };
  }

  /**
   * The digests in places `first` … once the stream is done: 32 hex characters each, the low word
   * before the high one.
   */
  async results(
    stream: StreamHandle,
    places: { readonly first: number; readonly count: number },
    wait: Wait,
  ): Promise<string[]> {
    const from = { address: this.#outAt(places.first), bytes: places.count * digestBytes };
    const bytes = Buffer.from(await this.#driver.read(stream, from, wait));
    // formatDigest() of each, without a bigint for each: halves written with the high byte first.
    const digits = bytes.swap64().toString("hex");
    const length = 2 * digestBytes;
    return Array.from({ length: places.count }, (_, index) =>
      digits.slice(index * length, (index + 1) * length),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#driver.close(this.#scratch.id);
    await this.#driver.close(this.#module);
  }

  #outAt(place: number): DevicePtr {
    return at(this.#scratch.address, this.segmentCountMax * segmentBytes + place * digestBytes);
  }
}

const words = segmentBytes / 8;
const addressWord = wordOf("RelightDigestSegment", "address");
const bytesWord = wordOf("RelightDigestSegment", "bytes");
const chunkWord = wordOf("RelightDigestSegment", "first_chunk");

function tableOf(segments: readonly DigestSegment[]): { table: Uint8Array; chunkCount: number } {
  const table = new BigUint64Array(segments.length * words);
  let chunkCount = 0;
  let next = 0;
  for (const { address, bytes } of segments) {
    assert(bytes > 0, "a digest segment has bytes");
    table[next + addressWord] = address;
    table[next + bytesWord] = BigInt(bytes);
    table[next + chunkWord] = BigInt(chunkCount);
    chunkCount += Math.ceil(bytes / abi.constants.RELIGHT_DIGEST_CHUNK);
    next += words;
  }
  return { table: new Uint8Array(table.buffer), chunkCount };
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
