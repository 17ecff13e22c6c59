// SPDX-License-Identifier: Apache-2.0
// How a slot empties: an end becomes known, the slot is DEAD, those that still map it let go, and only
// when its old occupant can no longer write is it EMPTY again.

import {
  emptySlot,
  type Group,
  heardOf,
  type Known,
  nextGeneration,
  seatedSlots,
  withFault,
  withSlot,
} from "./group.ts";
import { withoutSlot } from "./placement.ts";
import { type Ended, type Fault, isMember, isSameSeat, type Slot, seatOf } from "./view.ts";

/** Out for ever. Of a member it is a death: a new epoch begins at once, without it. */
export function bury(group: Group, slot: Slot, ended: Ended, isEndKnown = false): Group {
  const dead: Slot = {
    ...slot,
    state: "DEAD",
    ended,
    isEndKnown: slot.isEndKnown || isEndKnown,
    endedGeneration: nextGeneration(group),
  };
  const without = { ...withSlot(group, dead), transition: null, proposedAtMs: null };
  if (!isMember(slot)) return without;
  const epoch = group.epoch + 1;
  const fault: Fault = {
    epoch,
    seat: seatOf(slot),
    ended,
    firstFaultyStep: null,
    isSettled: false,
  };
  const { committed } = group;
  return {
    ...without,
    epoch,
    placement: withoutSlot(group.placement, slot.slot),
    committed: committed && {
      ...committed,
      placement: withoutSlot(committed.placement, slot.slot),
      leavers: committed.leavers.filter((seat) => !isSameSeat(seat, slot)),
    },
    faults: withFault(group, fault),
  };
}

/** What agents and ranks say about ends. */
export function takeEnds(group: Group, known: Known): Group {
  let next = group;
  for (const slot of group.slots) {
    if (slot.state === "EMPTY") continue;
    if (isGone(known, slot)) next = endOf(next, slot, "exited");
    else if (slot.state !== "DEAD" && heardOf(known, slot)?.status.isHungUp === true) {
      next = bury(next, slot, "hung_up");
    } else if (heardOf(known, slot)?.status.isQuiesced === true) {
      next = endOf(next, slot, isMember(slot) ? "hung_up" : "aborted");
    }
  }
  return next;
}

function endOf(group: Group, slot: Slot, ended: Ended): Group {
  if (slot.state !== "DEAD") return bury(group, slot, ended, true);
  return slot.isEndKnown ? group : withSlot(group, { ...slot, isEndKnown: true });
}

/** Only a word from the node on which the process ran counts, by whom that node belongs to. */
function isGone(known: Known, slot: Slot): boolean {
  const { occupant } = slot;
  if (occupant === null) return false;
  for (const { status, from } of known.heard.values()) {
    if (from.nodeId !== occupant.process.nodeId || from.owner !== occupant.owner) continue;
    if (status.gone.some((seat) => isSameSeat(seat, slot))) return true;
  }
  return false;
}

/** Slots that nobody maps any more and whose occupants can no longer write. */
export function sweep(group: Group, known: Known): Group {
  let next = group;
  for (const slot of group.slots) {
    if (slot.state === "DEAD" && slot.isEndKnown && isForgotten(group, known, slot))
      next = withSlot(next, emptySlot(slot.slot, slot.incarnation));
  }
  return next;
}

/** Every seated rank has acted on the end and holds no mapping of it. */
export function isForgotten(group: Group, known: Known, dead: Slot): boolean {
  return seatedSlots(group).every((slot) => {
    const status = heardOf(known, slot)?.status;
    // Staged after that end: it was never told to map it.
    if (status === undefined) return false;
    if (status.generation < dead.endedGeneration) return false;
    return !status.holds.some((seat) => isSameSeat(seat, dead));
  });
}

/** What each death cost, once all survivors have said so. */
export function settleFaults(group: Group, known: Known): Group {
  if (group.faults.every(({ isSettled }) => isSettled)) return group;
  const members = group.slots.filter(isMember);
  const statuses = members.map((slot) => heardOf(known, slot)?.status);
  const faults = group.faults.map((fault) => {
    if (fault.isSettled) return fault;
    const isHeard = statuses.every(
      (status) => status !== undefined && status.maskedEpoch >= fault.epoch,
    );
    if (!isHeard) return fault;
    const steps = statuses.flatMap(
      (status) => firstFaulty(status?.faulty ?? [], fault.epoch) ?? [],
    );
    const firstFaultyStep = steps.length === 0 ? null : Math.min(...steps);
    return { ...fault, isSettled: true, firstFaultyStep };
  });
  const isChanged = faults.some((fault, at) => fault !== group.faults[at]);
  return isChanged ? { ...group, faults } : group;
}

/** The answer to this death, or to the later one that was masked together with it. */
function firstFaulty(
  answers: readonly { readonly epoch: number; readonly firstFaultyStep: number | null }[],
  epoch: number,
): number | null {
  return answers.find((answer) => answer.epoch >= epoch)?.firstFaultyStep ?? null;
}
