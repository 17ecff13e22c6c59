// SPDX-License-Identifier: Apache-2.0
// Expert groups under faults: some dozens of seeds on every change, their base from the commit; and
// rules broken on purpose, which a checker must notice.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { decide } from "../../src/elastic/controller.ts";
import type { Group } from "../../src/elastic/group.ts";
import type { Slot } from "../../src/elastic/view.ts";
import { type ElasticResult, playElastic } from "./elastic.ts";
import { seedOfCommit } from "./seed.ts";

const seedCount = 60;

describe("simulation of expert groups", () => {
  test(`a group under faults keeps every rule, then comes back (${seedCount} seeds)`, async () => {
    const base = seedOfCommit();
    const results: ElasticResult[] = [];
    for (let seed = base; seed < base + seedCount; seed++) {
      const result = await playElastic({ seed });
      const again = `npm run sim -- --elastic --seed=${seed}`;
      assert.deepEqual(result.violations, [], `faults: ${result.faults.join(" ")}; ${again}`);
      results.push(result);
    }
    for (const name of Object.keys(results[0]?.looks ?? {})) {
      const total = results.reduce((sum, { looks }) => sum + (looks[name] ?? 0), 0);
      assert.ok(total > 0, `the checker of ${name} never looked`);
    }
  });

  test("a seed gives the same history every time", async () => {
    assert.deepEqual(await playElastic({ seed: 5 }), await playElastic({ seed: 5 }));
  });
});

describe("canary simulation of expert groups", () => {
  test("a slot given away before its occupant's end is known is noticed", async () => {
    const rule: typeof decide = (group, known, now, first) =>
      decide(
        freed(group, (slot) => !slot.isEndKnown),
        known,
        now,
        first,
      );
    await assertCaught(rule, "is given away");
  });

  test("a slot given away while peers map it is noticed", async () => {
    const rule: typeof decide = (group, known, now, first) =>
      decide(
        freed(group, (slot) => slot.isEndKnown),
        known,
        now,
        first,
      );
    await assertCaught(rule, "is given away");
  });

  test("a flip that commits before everybody has armed it is noticed", async () => {
    const rule: typeof decide = (group, known, now, first) => {
      const number = group.transition?.flip?.number;
      if (number === undefined) return decide(group, known, now, first);
      const heard = new Map(
        [...known.heard].map(([id, one]) => [
          id,
          { ...one, status: { ...one.status, armed: number, refused: 0 } },
        ]),
      );
      return decide(group, { ...known, heard }, now, first);
    };
    await assertCaught(rule, "step");
  });

  test("an epoch that is not raised by a death is noticed", async () => {
    const rule: typeof decide = (group, known, now, first) => {
      const next = decide(group, known, now, first);
      return next.faults.length > group.faults.length ? { ...next, epoch: group.epoch } : next;
    };
    await assertCaught(rule, "epoch");
  });

  test("an operation whose deadline is never looked at is noticed", async () => {
    const rule: typeof decide = (group, known, now, first) => {
      const { operation } = group;
      if (operation === null) return decide(group, known, now, first);
      const request = { ...operation.request, timeoutMs: Number.MAX_SAFE_INTEGER };
      const patient = { ...group, operation: { ...operation, request } };
      const next = decide(patient, known, now, first);
      return next === patient ? group : next;
    };
    await assertCaught(rule, "does not end");
  });
});

function freed(group: Group, isFreed: (slot: Slot) => boolean): Group {
  if (!group.slots.some((slot) => slot.state === "DEAD" && isFreed(slot))) return group;
  const slots = group.slots.map((slot): Slot => {
    if (slot.state !== "DEAD" || !isFreed(slot)) return slot;
    return { ...slot, state: "EMPTY", occupant: null, onAtStep: null, offAtStep: null };
  });
  return { ...group, slots };
}

/** Of a hundred seeds under this rule, one must show a violation that says so. */
async function assertCaught(rule: typeof decide, words: string): Promise<void> {
  for (let seed = 1; seed <= 100; seed++) {
    const { violations } = await playElastic({ seed, rule });
    if (violations.some((violation) => violation.includes(words))) return;
  }
  assert.fail(`no checker said "${words}"`);
}
