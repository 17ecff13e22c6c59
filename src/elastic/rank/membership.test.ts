// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Placement } from "../view.ts";
import {
  type Membership,
  membersAt,
  missingExperts,
  never,
  ownersAt,
  ownerTable,
  withChange,
  withoutDead,
} from "./membership.ts";

const seat = (slot: number, incarnation = 1) => ({ slot, incarnation });
const one: Placement = [[{ slot: 0, local: 0 }], [{ slot: 1, local: 0 }]];
const other: Placement = [[{ slot: 2, local: 3 }], [{ slot: 1, local: 0 }]];

const two: Membership = {
  members: [0, 1].map((slot) => ({ ...seat(slot), onAt: 1n, offAt: never })),
  now: one,
  next: one,
  from: 0,
};

test("withChange() lets ranks in and out at one step and keeps the old owners before it", () => {
  const change = { atStep: 9, on: [seat(2)], off: [seat(0)], placement: other };
  const after = withChange(two, change, 5);
  assert.equal(membersAt(after, 8), 0b011);
  assert.equal(membersAt(after, 9), 0b110);
  assert.equal(ownersAt(after, 8), one);
  assert.equal(ownersAt(after, 9), other);
});

test("withChange() carries on from a change that is behind", () => {
  const first = withChange(two, { atStep: 3, on: [seat(2)], off: [], placement: other }, 2);
  const second = withChange(first, { atStep: 8, on: [], off: [seat(0)], placement: one }, 5);
  assert.equal(ownersAt(second, 7), other);
  assert.equal(membersAt(second, 8), 0b110);
});

test("withChange() puts a new occupant where one has left", () => {
  const left = withChange(two, { atStep: 3, on: [], off: [seat(0)], placement: other }, 2);
  const back = withChange(left, { atStep: 9, on: [seat(0, 2)], off: [], placement: one }, 5);
  assert.equal(membersAt(back, 8), 0b10);
  assert.equal(membersAt(back, 9), 0b11);
});

test("withoutDead() drops the dead by incarnation, also from a change that is ahead", () => {
  const ahead = withChange(two, { atStep: 9, on: [seat(2)], off: [], placement: other }, 5);
  const lost: Placement = [[], [{ slot: 1, local: 0 }]];
  const after = withoutDead(ahead, [seat(0), seat(1, 7)], { now: lost, next: null });
  assert.equal(membersAt(after, 5), 0b010);
  assert.equal(membersAt(after, 9), 0b110);
  assert.deepEqual(missingExperts(ownersAt(after, 9)), [0]);
});

test("ownerTable() prefers the own copy and spreads the others", () => {
  const both: Placement = Array.from({ length: 8 }, () => [
    { slot: 0, local: 1 },
    { slot: 1, local: 2 },
  ]);
  assert.ok(ownerTable(both, 1).every((owner) => owner?.slot === 1));
  const chosen = new Set(ownerTable(both, 5).map((owner) => owner?.slot));
  assert.deepEqual(chosen, new Set([0, 1]));
  assert.deepEqual(ownerTable([[]], 0), [null]);
});
