// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { safetensors, withHeader } from "../../test/support/checkpoint.ts";
import { breaksSafetensors, safetensorsHeadBytes } from "./safetensors.ts";

const problem = (bytes: Buffer): string | null => breaksSafetensors(bytes, bytes.length);
const tensor = (begin: number, end: number, rest = {}) => ({
  dtype: "U8",
  shape: [end - begin],
  data_offsets: [begin, end],
  ...rest,
});

describe("breaksSafetensors()", () => {
  test("takes a file whose every byte belongs to one tensor, in any order, padded and with metadata", () => {
    assert.equal(problem(safetensors(["a", "b"], 100)), null);
    assert.equal(problem(withHeader({}, Buffer.alloc(0))), null);
    const header = {
      __metadata__: { format: "pt" },
      late: tensor(8, 12),
      early: { dtype: "F32", shape: [2, 1], data_offsets: [0, 8] },
      scalar: { dtype: "BF16", shape: [], data_offsets: [12, 14] },
      empty: { dtype: "F16", shape: [0, 7], data_offsets: [14, 14] },
      packed: { dtype: "F4", shape: [3], data_offsets: [14, 16] },
    };
    assert.equal(problem(withHeader(header, Buffer.alloc(16))), null);
    const json = Buffer.from(`${JSON.stringify(header)}     `);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(json.length));
    assert.equal(problem(Buffer.concat([length, json, Buffer.alloc(16)])), null);
  });

  test("sees only the head and still tells whether the rest has the right size", () => {
    const bytes = safetensors(["a"], 1_000);
    const need = safetensorsHeadBytes(bytes.subarray(0, 8), bytes.length);
    assert.equal(need, bytes.length - 1_000);
    assert.equal(breaksSafetensors(bytes.subarray(0, need), bytes.length), null);
    assert.match(breaksSafetensors(bytes.subarray(0, need), bytes.length - 1) ?? "", /999 follow/);
  });

  for (const [what, header, reason] of [
    ["overlapping tensors", { a: tensor(0, 6), b: tensor(4, 10) }, /"b" overlaps/],
    ["a hole", { a: tensor(0, 4), b: tensor(6, 10) }, /2 bytes before tensor "b"/],
    ["bytes behind the last tensor", { a: tensor(0, 4) }, /have 4 bytes, 10 follow/],
    ["a tensor beyond the end", { a: tensor(0, 11) }, /have 11 bytes, 10 follow/],
    ["offsets that run backwards", { a: tensor(6, 4) }, /not a list of counts|ends before/],
    ["a negative offset", { a: tensor(-1, 9) }, /not two counts/],
    ["an offset that is no whole number", { a: tensor(0, 9.5) }, /counts/],
    ["a size that is not the shape's", { a: tensor(0, 10, { shape: [4] }) }, /has 4 bytes/],
    ["a shape beyond all bounds", { a: tensor(0, 10, { shape: [2 ** 53] }) }, /list of counts/],
    ["no type", { a: tensor(0, 10, { dtype: 7 }) }, /dtype/],
    ["metadata that are no texts", { __metadata__: { a: 1 }, a: tensor(0, 10) }, /metadata/],
    ["a list", [], /not an object/],
  ] as const) {
    test(`refuses ${what}`, () => {
      assert.match(problem(withHeader(header, Buffer.alloc(10))) ?? "", reason);
    });
  }

  test("refuses a header that is longer than the file, too long, or no JSON", () => {
    assert.match(problem(Buffer.from([1, 2])) ?? "", /too short/);
    assert.match(problem(Buffer.alloc(100, 0xff)) ?? "", /want at most 92/);
    const huge = Buffer.alloc(16);
    huge.writeBigUInt64LE(100_000_001n);
    assert.match(breaksSafetensors(huge, 1e12) ?? "", /want at most 100000000/);
    assert.equal(safetensorsHeadBytes(huge, 1e12), 8, "nobody reads that much");
    const text = Buffer.alloc(20, "x");
    text.writeBigUInt64LE(12n);
    assert.match(problem(text) ?? "", /not JSON/);
  });
});
