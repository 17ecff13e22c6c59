// SPDX-License-Identifier: Apache-2.0
// The digest of a byte range, slow and obvious: what kernels/src/digest.cu computes at memory speed.
// Every 16-byte word is mixed with its index and the seed by a bijection and the results are added, so
// the order of work does not matter. It catches corruption and mix-ups, not forgery.

import { abi, readStruct, structBytes } from "./abi.ts";
import type { DevicePtr } from "./driver.ts";
import type { FakeKernel } from "./fake.ts";
import type { FakeReach } from "./fake-memory.ts";

const step = 0x9e3779b97f4a7c15n;
const mix0 = 0xbf58476d1ce4e5b9n;
const mix1 = 0x94d049bb133111ebn;
const mix2 = 0xff51afd7ed558ccdn;
const mix3 = 0xc4ceb9fe1a85ec53n;
const mask = 2n ** 64n - 1n;

export interface Digest128 {
  readonly low: bigint;
  readonly high: bigint;
}

/** 32 hex characters, the low word before the high one, as kernels/reference/digest.ts writes them. */
export function formatDigest({ low, high }: Digest128): string {
  return low.toString(16).padStart(16, "0") + high.toString(16).padStart(16, "0");
}

/** @param seed 64 bits; both sides of a comparison use the same. */
export function digestReference(bytes: Uint8Array, seed: bigint): Digest128 {
  const { low, high } = sumWords(bytes, seed);
  return finish({ low, high }, BigInt(bytes.byteLength), seed);
}

function sumWords(bytes: Uint8Array, seed: bigint): Digest128 {
  const padded = Buffer.alloc(Math.ceil(bytes.byteLength / 16) * 16);
  padded.set(bytes);
  let low = 0n;
  let high = 0n;
  for (let word = 0; word * 16 < padded.byteLength; word += 1) {
    const key = (BigInt(word + 1) * step + seed) & mask;
    let a = padded.readBigUInt64LE(16 * word) ^ key;
    let b = (padded.readBigUInt64LE(16 * word + 8) + rotate(key, 32n)) & mask;
    a = ((a ^ (a >> 32n)) * mix0) & mask;
    b = ((b ^ (b >> 29n)) * mix1) & mask;
    a = (a + rotate(b, 27n)) & mask;
    b ^= rotate(a, 31n);
    a = ((a ^ (a >> 29n)) * mix2) & mask;
    b = ((b ^ (b >> 32n)) * mix3) & mask;
    low = (low + a) & mask;
    high = (high + b) & mask;
  }
  return { low, high };
}

function finish(sum: Digest128, bytes: bigint, seed: bigint): Digest128 {
  const low = finishHalf(sum.low, sum.high, bytes, seed);
  return { low, high: finishHalf(sum.high, low, bytes, ~seed & mask) };
}

function finishHalf(sum: bigint, other: bigint, bytes: bigint, seed: bigint): bigint {
  let h = sum ^ rotate(other, 32n) ^ ((bytes * step + seed) & mask);
  h = ((h ^ (h >> 30n)) * mix0) & mask;
  h = ((h ^ (h >> 27n)) * mix1) & mask;
  return h ^ (h >> 31n);
}

function rotate(value: bigint, by: bigint): bigint {
  return ((value << by) | (value >> (64n - by))) & mask;
}

/** Names for the fake's modules; the real ones come from kernels/build. */
export const fakeDigestImage = Buffer.from(
  ".target sm_80\n.entry relight_digest\n.entry relight_digest_finish\n",
);

/** The two kernels on the fake: sums are added by the first and finished by the second. */
export const fakeDigestKernels: Readonly<Record<string, FakeKernel>> = {
  relight_digest: (memory, launch) => {
    eachSegment(memory, launch, ({ bytes, sum, seed }) => {
      const added = sumWords(bytes, seed);
      return { low: (sum.low + added.low) & mask, high: (sum.high + added.high) & mask };
    });
  },
  relight_digest_finish: (memory, launch) => {
    eachSegment(memory, launch, ({ bytes, sum, seed }) =>
      finish(sum, BigInt(bytes.byteLength), seed),
    );
  },
};

function eachSegment(
  memory: FakeReach,
  { params }: Parameters<FakeKernel>[1],
  next: (at: { bytes: Buffer; sum: Digest128; seed: bigint }) => Digest128,
): void {
  const [param] = params;
  if (param === undefined || !("struct" in param)) throw new TypeError("one struct is wanted");
  const args = readStruct("RelightDigestArgs", { bytes: Buffer.from(param.struct), offset: 0 });
  const size = structBytes("RelightDigestSegment");
  const count = Number(args.segment_count);
  const table = memory.read(args.segments as DevicePtr, size * count);
  const out = memory.read(args.out as DevicePtr, 16 * count);
  let chunks = 0n;
  for (let index = 0; index < count; index += 1) {
    const segment = readStruct("RelightDigestSegment", { bytes: table, offset: size * index });
    // A kernel that got a wrong table would read elsewhere; the fake says so instead.
    if (segment.first_chunk !== chunks) throw new RangeError("first_chunk does not add up");
    chunks += (segment.bytes + BigInt(abi.constants.RELIGHT_DIGEST_CHUNK) - 1n) / chunkBytes;
    const bytes = memory.read(segment.address as DevicePtr, Number(segment.bytes));
    const sum = { low: out.readBigUInt64LE(16 * index), high: out.readBigUInt64LE(16 * index + 8) };
    const { low, high } = next({ bytes, sum, seed: args.seed });
    out.writeBigUInt64LE(low, 16 * index);
    out.writeBigUInt64LE(high, 16 * index + 8);
  }
  if (chunks !== args.chunk_count) throw new RangeError("chunk_count does not add up");
  memory.write(args.out as DevicePtr, out);
}

const chunkBytes = BigInt(abi.constants.RELIGHT_DIGEST_CHUNK);
