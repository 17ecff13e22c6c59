// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { groupConfig, occupant } from "../../test/support/ep-group.ts";
import { decide } from "./controller.ts";
import { controllerLimits, emptySlot, type Group, type Known, newGroup } from "./group.ts";
import { firstStatus, type Heard, type Speaker } from "./status.ts";
import { condemn } from "./verdict.ts";
import type { Seat, Slot } from "./view.ts";

describe("condemn()", () => {
  const heardAt = () => 0;

  test("one whom everybody accuses goes alone", () => {
    const accusations = [0, 1, 3].map((from) => ({ from, of: 2 }));
    assert.deepEqual(condemn(accusations, heardAt), [2]);
  });

  test("one that accuses everybody goes instead of those it accuses", () => {
    const accusations = [0, 1, 3].map((of) => ({ from: 2, of }));
    assert.deepEqual(condemn(accusations, heardAt), [2]);
  });

  test("of two that accuse each other the one goes that was not heard for longer", () => {
    const accusations = [
      { from: 0, of: 1 },
      { from: 1, of: 0 },
    ];
    assert.deepEqual(
      condemn(accusations, (slot) => (slot === 0 ? 5 : 9)),
      [0],
    );
    assert.deepEqual(condemn(accusations, heardAt), [1]);
  });

  test("afterwards nobody who stays accuses anybody who stays", () => {
    const accusations = [0, 1, 2, 3].flatMap((from) =>
      [0, 1, 2, 3].flatMap((of) => (from < of ? [{ from, of }] : [])),
    );
    const out = condemn(accusations, heardAt);
    assert.ok(accusations.every(({ from, of }) => out.includes(from) || out.includes(of)));
  });
});

describe("a word that a process has ended", () => {
  const victim: Seat = { slot: 1, incarnation: 1 };

  test("counts from its own node", () => {
    const next = decide(pair(), knownBy({ nodeId: "node-b", owner: "b" }, victim), now);
    assert.equal(next.slots[1]?.state, "DEAD");
    assert.equal(next.slots[1]?.isEndKnown, true);
    assert.equal(next.epoch, 2);
  });

  test("counts neither from another node nor from somebody else who names that node", () => {
    for (const from of [
      { nodeId: "node-a", owner: "a" },
      { nodeId: "node-b", owner: "a" },
    ]) {
      const group = pair();
      assert.equal(decide(group, knownBy(from, victim), now), group);
    }
  });

  test("does not concern the next occupant of the slot", () => {
    const group = pair();
    const known = knownBy({ nodeId: "node-b", owner: "b" }, { slot: 1, incarnation: 9 });
    assert.equal(decide(group, known, now), group);
  });
});

const now = { nowMs: 1_000, limits: controllerLimits };

function pair(): Group {
  const placement = [[{ slot: 0, local: 0 }]];
  const slots = [seated(0, "a"), seated(1, "b")];
  return { ...newGroup(groupConfig({ slotCount: 2, expertCount: 1 })), epoch: 1, slots, placement };
}

function seated(slot: number, name: string): Slot {
  return {
    ...emptySlot(slot, 1),
    state: "ACTIVE",
    occupant: occupant(name, { owner: name }),
    onAtStep: 1,
  };
}

function knownBy(from: Speaker, gone: Seat): Known {
  const status = { ...firstStatus("witness"), gone: [gone] };
  const heard: Heard = { from, status, heardAtMs: 1_000, stepsPerMs: 0 };
  return { sinceMs: 0, heard: new Map([["witness", heard]]), candidates: new Map(), load: [] };
}
