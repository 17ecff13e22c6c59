// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { groupConfig, occupant } from "../../test/support/ep-group.ts";
import { emptySlot, newGroup, viewOf } from "./group.ts";
import {
  hearReport,
  hearView,
  newMember,
  othersEnded,
  processEnded,
  resumedMember,
} from "./member.ts";
import type { Command } from "./session.ts";
import type { Flip, Slot, SlotState, View } from "./view.ts";

describe("a rank's side of membership", () => {
  test("a view that is not newer gives no command and changes nothing", () => {
    const [member] = hearView(newMember("a"), seated(3));
    for (const generation of [1, 2, 3]) {
      assert.deepEqual(hearView(member, seated(generation)), [member, []]);
    }
  });

  test("views that were missed are made up for by the next one", () => {
    const [member] = hearView(newMember("a"), seated(1));
    const [, commands] = hearView(member, seated(9, { flip: { number: 4, epoch: 2, atStep: 50 } }));
    assert.deepEqual(types(commands), ["prepare", "arm"]);
  });

  test("an answer to a proposal that no longer stands does not count", () => {
    const first = { number: 4, epoch: 2, atStep: 50 };
    const second = { number: 5, epoch: 2, atStep: 70 };
    const [armed] = hearView(newMember("a"), seated(1, { flip: first }));
    const [again, commands] = hearView(armed, seated(2, { flip: second }));
    assert.deepEqual(types(commands), ["disarm", "arm"]);
    assert.equal(hearReport(again, { type: "armed", number: 4 }).status.armed, 0);
    assert.equal(hearReport(again, { type: "armed", number: 5 }).status.armed, 5);
  });

  test("a proposal that is taken back opens the gate", () => {
    const flip = { number: 4, epoch: 2, atStep: 50 };
    const [armed] = hearView(newMember("a"), seated(1, { flip }));
    const known = hearReport(armed, { type: "armed", number: 4 });
    const [back, commands] = hearView(known, seated(2));
    assert.deepEqual(commands, [{ type: "disarm", number: 4 }]);
    assert.equal(back.status.armed, 0);
  });

  test("a death is masked before it is unmapped, once", () => {
    const [member] = hearView(newMember("a"), seated(1));
    const mapped = hearReport(member, { type: "mapped", seat: { slot: 1, incarnation: 1 } });
    const [next, commands] = hearView(mapped, dead(2));
    assert.deepEqual(types(commands), ["mask", "unmap"]);
    assert.deepEqual(hearView(next, dead(3))[1], []);
    const seat = { slot: 1, incarnation: 1 };
    assert.deepEqual(hearReport(next, { type: "unmapped", seat }).status.holds, []);
  });

  test("whoever sits in its slot under another incarnation ends it", () => {
    const [member] = hearView(newMember("a"), seated(1));
    const taken = seated(2);
    const slots = taken.slots.map((slot) => (slot.slot === 0 ? { ...slot, incarnation: 2 } : slot));
    const [over, commands] = hearView(member, { ...taken, slots });
    assert.deepEqual(commands, [{ type: "evicted", ended: "stale" }]);
    assert.ok(over.isOver);
    assert.deepEqual(hearView(over, seated(3)), [over, []]);
  });

  test("an agent says that a process has ended also when it is seated only afterwards", () => {
    const ended = processEnded(newMember("a"));
    const [member, commands] = hearView(ended, seated(1));
    assert.deepEqual(commands, []);
    assert.deepEqual(member.status.gone, [{ slot: 0, incarnation: 1 }]);
    const more = othersEnded(member, [{ slot: 1, incarnation: 1 }]);
    assert.equal(more.status.gone.length, 2);
    assert.equal(othersEnded(more, [{ slot: 1, incarnation: 1 }]), more);
  });

  test("taken up by another agent it is told nothing twice that it has answered", () => {
    const flip = { number: 4, epoch: 2, atStep: 50 };
    let [member] = hearView(newMember("a"), seated(1, { flip }));
    member = hearReport(member, { type: "mapped", seat: { slot: 1, incarnation: 1 } });
    member = hearReport(member, { type: "ready", number: 3 });
    member = hearReport(member, { type: "armed", number: 4 });
    const resumed = resumedMember(member.status);
    assert.ok(resumed.status.sequence > member.status.sequence);
    const [, commands] = hearView(resumed, seated(1, { flip }));
    assert.deepEqual(commands, []);
  });
});

function types(commands: readonly Command[]): string[] {
  return commands.map(({ type }) => type);
}

/** "a" at slot 0 and "b" at slot 1, both members, and perhaps a change that is proposed. */
function seated(generation: number, { flip = null }: { flip?: Flip | null } = {}): View {
  const config = groupConfig({ slotCount: 2, expertCount: 1 });
  const before = [[{ slot: 1, local: 0 }]];
  const placement = [[{ slot: 0, local: 0 }]];
  const transition =
    flip === null ? null : { number: 3, joiners: [], leavers: [], placement, flip, attempts: 1 };
  const slots = [slotOf(0, "a", "ACTIVE"), slotOf(1, "b", "ACTIVE")];
  const view = viewOf(newGroup(config));
  return { ...view, generation, epoch: 1, slots, placement: before, transition };
}

function dead(generation: number): View {
  const view = seated(generation);
  const fault = {
    epoch: 2,
    seat: { slot: 1, incarnation: 1 },
    ended: "exited",
    firstFaultyStep: null,
    isSettled: false,
  } as const;
  const gone: Slot = { ...slotOf(1, "b", "DEAD"), ended: "exited" };
  return { ...view, epoch: 2, slots: [slotOf(0, "a", "ACTIVE"), gone], faults: [fault] };
}

function slotOf(slot: number, name: string, state: SlotState): Slot {
  return { ...emptySlot(slot, 1), state, occupant: occupant(name), onAtStep: 1 };
}
