// SPDX-License-Identifier: Apache-2.0
// Defines the 128-bit digest that kernels/src/digest.cu computes: a sum over 16-byte words of a
// bijection keyed by the word's index and the seed, then a bijective finish with the length.
// It catches corruption and mix-ups; it is not a cryptographic hash and stops no forger.

const mask = (1n << 64n) - 1n;
const step = 0x9e3779b97f4a7c15n;
const mix0 = 0xbf58476d1ce4e5b9n;
const mix1 = 0x94d049bb133111ebn;
const mix2 = 0xff51afd7ed558ccdn;
const mix3 = 0xc4ceb9fe1a85ec53n;

/** The digest of `bytes` under a 64-bit `seed`, as 32 hex digits (low word first, big-endian each). */
export function digest(bytes: Uint8Array, seed: bigint): string {
  let low = 0n;
  let high = 0n;
  for (let word = 0; word * 16 < bytes.length; word++) {
    const [first, second] = mixed(readWord(bytes, word), (BigInt(word + 1) * step + seed) & mask);
    low = (low + first) & mask;
    high = (high + second) & mask;
  }
  const length = BigInt(bytes.length);
  const a = finished(low, high, length, seed & mask);
  const b = finished(high, a, length, ~seed & mask);
  return a.toString(16).padStart(16, "0") + b.toString(16).padStart(16, "0");
}

/** Two little-endian halves; beyond the end there are zeros. */
function readWord(bytes: Uint8Array, word: number): readonly [bigint, bigint] {
  const halves: [bigint, bigint] = [0n, 0n];
  for (let i = 0; i < 16; i++) {
    const byte = BigInt(bytes[word * 16 + i] ?? 0);
    halves[i < 8 ? 0 : 1] |= byte << BigInt((i % 8) * 8);
  }
  return halves;
}

function mixed([low, high]: readonly [bigint, bigint], key: bigint): readonly [bigint, bigint] {
  let a = low ^ key;
  let b = (high + rotate(key, 32n)) & mask;
  a = ((a ^ (a >> 32n)) * mix0) & mask;
  b = ((b ^ (b >> 29n)) * mix1) & mask;
  a = (a + rotate(b, 27n)) & mask;
  b ^= rotate(a, 31n);
  a = ((a ^ (a >> 29n)) * mix2) & mask;
  b = ((b ^ (b >> 32n)) * mix3) & mask;
  return [a, b];
}

function finished(sum: bigint, other: bigint, length: bigint, seed: bigint): bigint {
  let h = sum ^ rotate(other, 32n) ^ ((length * step + seed) & mask);
  h = ((h ^ (h >> 30n)) * mix0) & mask;
  h = ((h ^ (h >> 27n)) * mix1) & mask;
  return h ^ (h >> 31n);
}

function rotate(value: bigint, by: bigint): bigint {
  return ((value << by) | (value >> (64n - by))) & mask;
}
