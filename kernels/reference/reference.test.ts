// SPDX-License-Identifier: Apache-2.0
// What the references promise, without a GPU.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { digest } from "./digest.ts";
import { combined, type Exchange, received } from "./exchange.ts";
import { fromBf16, fromE4m3, quantise, toBf16, toE4m3 } from "./quantise.ts";
import { exampleByte, vectors } from "./vectors.ts";

const seed = 7n;
const bytes = (length: number) => Uint8Array.from({ length }, (_, at) => exampleByte(at));

test("digest() sees every single changed bit of a range", () => {
  const data = bytes(50);
  const clean = digest(data, seed);
  for (let bit = 0; bit < data.length * 8; bit++) {
    const changed = Uint8Array.from(data, (b, i) => (i === bit >> 3 ? b ^ (1 << (bit & 7)) : b));
    assert.notEqual(digest(changed, seed), clean, `bit ${bit}`);
  }
});

test("digest() tells lengths, seeds and the order of words apart", () => {
  const zeros = [0, 1, 16, 17, 32].map((length) => digest(new Uint8Array(length), seed));
  assert.equal(new Set(zeros).size, zeros.length);
  assert.notEqual(digest(bytes(64), 1n), digest(bytes(64), 2n));
  const swapped = bytes(64);
  swapped.set(bytes(64).subarray(16, 32), 0);
  swapped.set(bytes(64).subarray(0, 16), 16);
  assert.notEqual(digest(swapped, seed), digest(bytes(64), seed));
});

test("toE4m3() gives back each of the 254 numbers and saturates at 448", () => {
  for (let code = 0; code < 256; code++)
    if ((code & 0x7f) !== 0x7f) assert.equal(toE4m3(fromE4m3(code)), code);
  assert.equal(fromE4m3(toE4m3(1e6)), 448);
  assert.equal(fromE4m3(toE4m3(-1e6)), -448);
  assert.equal(toE4m3(fromE4m3(9) + 2 ** -10), 10, "a tie goes to the even code");
});

test("toBf16() rounds to nearest even", () => {
  assert.equal(fromBf16(toBf16(1 + 2 ** -8)), 1);
  assert.equal(fromBf16(toBf16(1 + 3 * 2 ** -8)), 1 + 2 ** -6);
  assert.equal(fromBf16(toBf16(-3.5)), -3.5);
});

test("quantise() keeps every value within the step of its group's scale", () => {
  const token = Uint16Array.from({ length: 320 }, (_, at) => toBf16(Math.cos(at) * 2 ** (at % 9)));
  for (const format of ["fp8", "fp8_pow2", "fp8_ue8m0"] as const) {
    const row = quantise(token, format);
    assert.equal(row.scales.length, 3);
    token.forEach((bits, at) => {
      const group = token.subarray((at >> 7) << 7, ((at >> 7) + 1) << 7);
      const most = Math.max(...Array.from(group, (b) => Math.abs(fromBf16(b))));
      const error = Math.abs((row.values[at] ?? Number.NaN) - fromBf16(bits));
      assert.ok(error <= Math.max(Math.abs(fromBf16(bits)) / 16, most / 448) * 1.0001);
    });
  }
});

test("vectors.json is what the references give today", () => {
  const stored = readFileSync(new URL("../test/vectors.json", import.meta.url), "utf8");
  assert.deepEqual(JSON.parse(stored), JSON.parse(JSON.stringify(vectors())));
});

function exchange(alive: readonly boolean[]): Exchange {
  const token = (value: number) => new Uint16Array(32).fill(toBf16(value));
  return {
    format: "bf16",
    alive,
    owners: [{ rank: 0, local: 0 }, { rank: 1, local: 0 }, { rank: 1, local: 1 }, null],
    steps: [
      {
        tokens: [token(1), token(2)],
        experts: [
          [0, 1],
          [1, -1],
        ],
        weights: [
          [0.5, 0.25],
          [1, 1],
        ],
      },
      { tokens: [token(3)], experts: [[1, 2]], weights: [[2, 4]] },
    ],
  };
}

const identity = (values: Float64Array) => Uint16Array.from(values, toBf16);

test("received() orders rows by source, then token, and skips dead sources and absent choices", () => {
  const places = (alive: boolean[], rank: number, local: number) =>
    received(exchange(alive), rank, local).map(({ source, token }) => [source, token]);
  assert.deepEqual(places([true, true], 1, 0), [
    [0, 0],
    [0, 1],
    [1, 0],
  ]);
  assert.deepEqual(places([false, true], 1, 0), [[1, 0]]);
  assert.deepEqual(places([true, true], 1, 1), [[1, 0]]);
});

test("combined() weighs each alive owner and leaves a dead owner's part out", () => {
  const home = (alive: boolean[], rank: number) =>
    combined(exchange(alive), rank, identity).map((row) => fromBf16(row[0] ?? 0));
  assert.deepEqual(home([true, true], 0), [0.75, 2]);
  assert.deepEqual(home([true, true], 1), [18]);
  assert.deepEqual(home([true, false], 0), [0.5, 0]);
});
