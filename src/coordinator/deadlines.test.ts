// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Deadlines } from "./deadlines.ts";

test("take() gives the keys in order of time, and none before its time", () => {
  const deadlines = new Deadlines();
  deadlines.add("late", 30);
  deadlines.add("early", 10);
  assert.equal(deadlines.take(10), undefined);
  assert.equal(deadlines.take(11), "early");
  assert.equal(deadlines.take(30), undefined);
  assert.equal(deadlines.take(31), "late");
  assert.equal(deadlines.size, 0);
});

test("add() moves a key to an earlier time and not to a later one", () => {
  const deadlines = new Deadlines();
  deadlines.add("a", 20);
  deadlines.add("a", 10);
  deadlines.add("a", 40);
  assert.equal(deadlines.size, 1);
  assert.equal(deadlines.take(15), "a");
  assert.equal(deadlines.take(100), undefined);
});

test("Deadlines gives what a sorted map would, for any history", () => {
  const history = fc.array(
    fc.oneof(
      fc.record({ key: fc.constantFrom("a", "b", "c", "d", "e"), at: fc.nat(50) }),
      fc.record({ now: fc.nat(60) }),
    ),
  );
  fc.assert(
    fc.property(history, (steps) => {
      const deadlines = new Deadlines();
      const model = new Map<string, number>();
      for (const step of steps) {
        if ("key" in step) {
          deadlines.add(step.key, step.at);
          model.set(step.key, Math.min(step.at, model.get(step.key) ?? Number.POSITIVE_INFINITY));
        } else {
          const key = deadlines.take(step.now);
          const earliest = Math.min(...model.values());
          if (key === undefined) assert.ok(!(earliest < step.now));
          else assert.equal(model.get(key), earliest);
          if (key !== undefined) model.delete(key);
        }
        assert.equal(deadlines.size, model.size);
      }
    }),
  );
});
