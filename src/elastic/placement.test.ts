// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { RelightError } from "../errors.ts";
import {
  emptyPlacement,
  lostExperts,
  movedCount,
  ownersFor,
  type PlacementInput,
  place,
  rankLoads,
  slackDefault,
  withoutSlot,
} from "./placement.ts";
import type { Placement } from "./view.ts";

const runs = { numRuns: 150 };

describe("place()", () => {
  test("gives each expert owners among the ranks, within their room, none twice at a rank", () => {
    fc.assert(
      fc.property(history(), ({ input, placement }) => {
        assert.equal(placement.length, input.expertCount);
        assert.deepEqual(lostExperts(placement), []);
        checkRoom(input, placement);
      }),
      runs,
    );
  });

  test("keeps what stays where it is, index and all, old and new within the room together", () => {
    fc.assert(
      fc.property(history(), ({ input, placement }) => {
        for (const slot of input.slots) {
          const locals = new Map<number, number>();
          for (const table of [input.before, placement]) {
            for (const [expert, copies] of table.entries()) {
              const copy = copies.find((one) => one.slot === slot);
              if (copy === undefined) continue;
              const other = locals.get(copy.local);
              assert.ok(other === undefined || other === expert, `index ${copy.local} has two`);
              assert.ok(copy.local < input.localExpertsMax);
              locals.set(copy.local, expert);
            }
          }
        }
      }),
      runs,
    );
  });

  test("the same input gives the same plan", () => {
    fc.assert(
      fc.property(history(), ({ input, placement }) => {
        assert.deepEqual(place(input), placement);
        assert.deepEqual(place({ ...input, slots: [...input.slots].reverse() }), placement);
      }),
      runs,
    );
  });

  test("no rank carries more than its fair part and one expert, where there is room", () => {
    fc.assert(
      fc.property(history({ isRoomy: true }), ({ input, placement }) => {
        const loads = rankLoads(placement, input.load, input.slots);
        const mean = loads.reduce((sum, load) => sum + load, 0) / loads.length;
        const heaviest = Math.max(
          ...placement.map((copies, expert) => (input.load[expert] ?? 1) / copies.length),
        );
        const bound = mean * (1 + slackDefault) + heaviest + 1e-6;
        assert.ok(Math.max(...loads) <= bound, `${loads} over ${bound}`);
      }),
      runs,
    );
  });

  test("a plan made again of its own result moves nothing", () => {
    fc.assert(
      fc.property(history({ isRoomy: true }), ({ input, placement }) => {
        assert.equal(movedCount(placement, place({ ...input, before: placement })), 0);
      }),
      runs,
    );
  });

  test("when one of equals leaves, only what it held moves", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 8 }),
        fc.integer({ min: 1, max: 16 }),
        (ranks, each) => {
          const expertCount = ranks * (ranks - 1) * each;
          if (expertCount > 512) return;
          const before = fresh({ expertCount, ranks });
          for (let gone = 0; gone < ranks; gone++) {
            const slots = range(ranks).filter((slot) => slot !== gone);
            const after = place(even({ expertCount, slots, before }));
            assert.equal(movedCount(withoutSlot(before, gone), after), (ranks - 1) * each);
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  test("when an equal joins, it gets its part and nothing else moves", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 7 }), fc.integer({ min: 1, max: 8 }), (ranks, each) => {
        const expertCount = ranks * (ranks + 1) * each;
        const before = fresh({ expertCount, ranks });
        const after = place(even({ expertCount, slots: range(ranks + 1), before }), 0);
        assert.equal(movedCount(before, after), ranks * each);
        for (const load of rankLoads(after, [], range(ranks + 1))) assert.equal(load, ranks * each);
      }),
      { numRuns: 40 },
    );
  });

  test("the busiest experts get the redundant copies", () => {
    const load = range(8).map((expert) => (expert === 3 ? 100 : 1));
    const input = { ...even({ expertCount: 8, slots: range(4), before: emptyPlacement(8) }), load };
    const placement = place({ ...input, redundantCount: 2 });
    assert.equal(placement[3]?.length, 3);
  });

  test("refuses what the ranks cannot hold", () => {
    const input = even({ expertCount: 9, slots: [0, 1], before: emptyPlacement(9) });
    assert.throws(
      () => place({ ...input, localExpertsMax: 4 }),
      (error) => error instanceof RelightError && error.code === "ep_capacity",
    );
  });
});

describe("ownersFor()", () => {
  test("sends to copies that exist, to its own first, and spreads the others evenly", () => {
    fc.assert(
      fc.property(history(), ({ input, placement }) => {
        const { slots } = input;
        const tables = slots.map((slot) => ownersFor(placement, slot, slots));
        for (const [expert, copies] of placement.entries()) {
          const uses = new Map<number, number>();
          for (const [at, slot] of slots.entries()) {
            const owner = tables[at]?.[expert] ?? 0;
            const copy = copies.find((one) => one.slot === owner >>> 16);
            assert.equal(copy?.local, owner & 0xffff);
            const own = copies.find((one) => one.slot === slot);
            if (own !== undefined) assert.equal(copy, own);
            uses.set(owner, (uses.get(owner) ?? 0) + 1);
          }
          if (copies.length <= slots.length - copies.length) assert.equal(uses.size, copies.length);
          assert.ok(Math.max(...uses.values()) <= Math.ceil(slots.length / copies.length));
        }
      }),
      runs,
    );
  });

  test("a lost expert routes nowhere", () => {
    assert.deepEqual([...ownersFor([[]], 0, [0])], [0xffff_ffff]);
  });
});

/** A plan that came after another one: ranks came and went in between. */
function history({ isRoomy = false } = {}) {
  return fc
    .record({
      expertCount: fc.integer({ min: 1, max: 64 }),
      first: fc.uniqueArray(fc.integer({ min: 0, max: 9 }), { minLength: 1, maxLength: 8 }),
      second: fc.uniqueArray(fc.integer({ min: 0, max: 9 }), { minLength: 1, maxLength: 8 }),
      redundantCount: fc.integer({ min: 0, max: 40 }),
      room: fc.integer({ min: 0, max: 30 }),
      loads: fc.array(fc.integer({ min: 1, max: 1_000 }), { minLength: 128, maxLength: 128 }),
    })
    .map(({ expertCount, first, second, redundantCount, room, loads }) => {
      const fewest = Math.min(first.length, second.length);
      // Room for the old and the new together, so that a plan exists.
      const localExpertsMax = isRoomy
        ? 2 * (expertCount + redundantCount)
        : Math.ceil(expertCount / fewest) * 2 + room;
      const shape = { expertCount, localExpertsMax, redundantCount };
      const before = place({
        ...shape,
        redundantCount: Math.min(redundantCount, isRoomy ? redundantCount : room),
        slots: first,
        before: emptyPlacement(expertCount),
        load: loads.slice(0, expertCount),
      });
      const load = loads.slice(64, 64 + expertCount);
      const input: PlacementInput = { ...shape, slots: second, before, load };
      return { input, placement: planned(input) };
    });
}

/** A history whose second plan has no room is no counter-example: `place` says so, and is asked less. */
function planned(input: PlacementInput): Placement {
  try {
    return place(input);
  } catch (error) {
    assert.ok(error instanceof RelightError && error.code === "ep_capacity");
    const slots = input.slots;
    return place({ ...input, slots, before: emptyPlacement(input.expertCount) });
  }
}

function checkRoom({ slots, localExpertsMax }: PlacementInput, placement: Placement): void {
  for (const copies of placement) {
    const at = copies.map(({ slot }) => slot);
    assert.equal(new Set(at).size, at.length);
    for (const slot of at) assert.ok(slots.includes(slot));
  }
  for (const slot of slots) {
    const held = placement.filter((copies) => copies.some((copy) => copy.slot === slot));
    assert.ok(held.length <= localExpertsMax);
  }
}

function fresh({ expertCount, ranks }: { expertCount: number; ranks: number }): Placement {
  return place(even({ expertCount, slots: range(ranks), before: emptyPlacement(expertCount) }), 0);
}

function even(input: Pick<PlacementInput, "expertCount" | "slots" | "before">): PlacementInput {
  return { ...input, localExpertsMax: 512, redundantCount: 0, load: [] };
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, at) => at);
}
