// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { lostIn, slotsIn } from "./outcome.ts";

const half = (epoch: bigint, used: number, failed = 0) => ({ epoch, used, failed });
const report = (dispatch: ReturnType<typeof half>, combine = dispatch) => ({
  ...{ dispatch, combine, suspect: 0 },
  fault: { count: 0n },
});
const wanted = { last: 7n, expected: 0b111 };

test("lostIn() finds nobody when everybody took part in both halves", () => {
  assert.equal(lostIn(report(half(7n, 0b111)), wanted), 0);
});

test("lostIn() names who failed, who was left out, and who came to one half only", () => {
  assert.equal(lostIn(report(half(7n, 0b111, 0b100)), wanted), 0b100);
  assert.equal(lostIn(report(half(7n, 0b101)), wanted), 0b010);
  assert.equal(lostIn(report(half(7n, 0b111), half(7n, 0b011)), wanted), 0b100);
});

test("lostIn() trusts nobody when the results are another step's", () => {
  assert.equal(lostIn(report(half(7n, 0b111), half(6n, 0b111)), wanted), 0b111);
});

test("slotsIn() knows the highest slot", () => {
  assert.deepEqual(slotsIn(0x8000_0001), [0, 31]);
});
