// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { Bits } from "./bits.ts";

const numbers = fc.array(fc.nat(200), { maxLength: 80 });

describe("Bits", () => {
  test("agrees with a set, whatever is added and removed", () => {
    fc.assert(
      fc.property(numbers, numbers, fc.nat(200), (added, removed, start) => {
        const bits = bitsOf(added);
        const model = new Set(added);
        for (const number of removed) {
          bits.remove(number);
          model.delete(number);
        }
        const sorted = [...model].sort((left, right) => left - right);
        const above = sorted.filter((number) => number >= start);
        const below = sorted.filter((number) => number < start);
        assert.deepEqual([...bits.from(start)], [...above, ...below]);
        assert.equal(bits.count(), model.size);
        assert.equal(bits.isEmpty, model.size === 0);
      }),
    );
  });

  test("and() and without() are those of sets", () => {
    fc.assert(
      fc.property(numbers, numbers, (left, right) => {
        const [mine, other] = [new Set(left), new Set(right)];
        const both = [...bitsOf(left).and(bitsOf(right)).from(0)];
        const only = [...bitsOf(left).without(bitsOf(right)).from(0)];
        assert.deepEqual(new Set(both), mine.intersection(other));
        assert.deepEqual(new Set(only), mine.difference(other));
      }),
    );
  });
});

function bitsOf(numbers: readonly number[]): Bits {
  const bits = new Bits(201);
  for (const number of numbers) bits.add(number);
  return bits;
}
