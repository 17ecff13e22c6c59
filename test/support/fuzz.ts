// SPDX-License-Identifier: Apache-2.0
// A small mutating fuzzer: takes seeds that a decoder accepts, changes them, and holds the decoder to
// "a value or a RelightError". One generator, one seed; the same seed gives the same inputs.

import { asRelightError, InvariantError, RelightError } from "../../src/errors.ts";

export interface FuzzTarget {
  /** The decoder: `readEntries()`. */
  readonly name: string;
  /** Inputs that the decoder accepts; mutation starts from these and from nothing. */
  readonly seeds: readonly (Uint8Array | string)[];
  /** Decodes, and asserts what must hold of every value that comes out, such as the round trip. */
  run(bytes: Uint8Array): void | Promise<void>;
}

export interface FuzzLimits {
  readonly seed: number;
  readonly inputCountMax: number;
  /** Ends earlier after this many milliseconds of `now`. */
  readonly runMsMax: number;
  readonly now: () => number;
}

export interface FuzzResult {
  readonly inputCount: number;
  /** How many inputs the decoder took for valid; none at all would mean a useless target. */
  readonly acceptedCount: number;
}

/** Longest time for one input, in milliseconds: far above what any decoder needs, below what hurts. */
const inputMsMax = 5_000;
const inputBytesMax = 1 << 16;

/** @throws Error that names the target and the input, in base64, when the decoder fails otherwise. */
export async function fuzz(target: FuzzTarget, limits: FuzzLimits): Promise<FuzzResult> {
  const random = generator(limits.seed);
  const seeds = target.seeds.map((seed) => Buffer.from(seed));
  const began = limits.now();
  let acceptedCount = 0;
  let inputCount = 0;
  while (inputCount < limits.inputCountMax && limits.now() - began < limits.runMsMax) {
    // The seeds themselves come first: a target whose seeds are refused tests nothing.
    const bytes = seeds[inputCount] ?? mutate(seeds, random);
    if (await accepts(target, { bytes, now: limits.now })) acceptedCount++;
    else if (inputCount < seeds.length) throw failure(target, bytes, "the seed was refused");
    inputCount++;
  }
  return { inputCount, acceptedCount };
}

async function accepts(
  target: FuzzTarget,
  input: { readonly bytes: Buffer; readonly now: () => number },
): Promise<boolean> {
  const began = input.now();
  const isAccepted = await runOnce(target, input.bytes);
  const took = input.now() - began;
  if (took > inputMsMax) throw failure(target, input.bytes, `took ${Math.round(took)} ms`);
  return isAccepted;
}

async function runOnce(target: FuzzTarget, bytes: Buffer): Promise<boolean> {
  try {
    // A copy: a decoder that keeps or changes its input must not change the seeds.
    await target.run(Uint8Array.from(bytes));
    return true;
  } catch (thrown) {
    if (thrown instanceof RelightError && thrown.code !== "internal") return false;
    const kind = thrown instanceof InvariantError ? "broke an invariant" : "threw a foreign error";
    throw failure(target, bytes, kind, thrown);
  }
}

function failure(target: FuzzTarget, bytes: Buffer, what: string, cause?: unknown): Error {
  const reason = cause === undefined ? "" : `: ${asRelightError(cause).message}`;
  const input = bytes.toString("base64");
  return new Error(`${target.name}: ${what}${reason}; input ${input}`, { cause });
}

type Random = (below: number) => number;

const tokens = [
  "\0",
  "../",
  "/",
  '"',
  "{",
  "}",
  "[",
  "]",
  ",",
  "-1",
  "1e309",
  "null",
  "\r\n\r\n",
  "\r\n",
  "__proto__",
  "constructor",
  "\ufeff",
  "\ud800",
  "9007199254740993",
  "sha256:",
  "%2e%2e",
  "é",
  "e\u0301",
  "=",
];

const edits: readonly ((bytes: Buffer, random: Random) => Buffer)[] = [
  (bytes, random) => replaced(bytes, random(bytes.length), Buffer.from([random(256)])),
  (bytes, random) => spliced(bytes, random, Buffer.alloc(0)),
  (bytes, random) => spliced(bytes, random, Buffer.from(tokens[random(tokens.length)] ?? "")),
  (bytes, random) =>
    spliced(bytes, random, bytes.subarray(random(bytes.length), random(bytes.length))),
  (bytes, random) => bytes.subarray(0, random(bytes.length)),
  (bytes, random) => spliced(bytes, random, Buffer.alloc(1 + random(300), random(256))),
];

function mutate(seeds: readonly Buffer[], random: Random): Buffer {
  let bytes: Buffer = seeds[random(seeds.length)] ?? Buffer.alloc(0);
  for (let left = 1 + random(4); left > 0; left--) {
    const edit = edits[random(edits.length)];
    bytes = edit?.(bytes, random).subarray(0, inputBytesMax) ?? bytes;
  }
  return bytes;
}

function replaced(bytes: Buffer, at: number, by: Buffer): Buffer {
  return Buffer.concat([bytes.subarray(0, at), by, bytes.subarray(at + by.length)]);
}

/** Puts `by` where a random piece of the input was, often an empty one. */
function spliced(bytes: Buffer, random: Random, by: Buffer): Buffer {
  const from = random(bytes.length + 1);
  const removed = random(2) === 0 ? 0 : random(16);
  return Buffer.concat([bytes.subarray(0, from), by, bytes.subarray(from + removed)]);
}

/** Whole numbers from 0 to below, from one seed (mulberry32). 0 for an empty range. */
function generator(seed: number): Random {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return below <= 0 ? 0 : ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}
