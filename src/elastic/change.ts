// SPDX-License-Identifier: Apache-2.0
// A change of membership, from plan to the last step under the old one: seat joiners, map and load while
// the group runs, propose a step, commit when everybody stops before it, and let go when everybody has
// passed it. One change at a time.

import { RelightError } from "../errors.ts";
import { bury } from "./ends.ts";
import {
  type Candidate,
  type Group,
  heardOf,
  type Known,
  nextGeneration,
  nextIncarnation,
  stayingSlots,
  withSlot,
} from "./group.ts";
import { place } from "./placement.ts";
import type { Status } from "./status.ts";
import type { Now } from "./verdict.ts";
import {
  type Committed,
  isMember,
  isSameSeat,
  type Seat,
  type Slot,
  seatOf,
  type Transition,
} from "./view.ts";

/** Gives free slots to candidates, earliest first, until `count` are staged. */
export function seat(group: Group, known: Known, count: number): Group {
  let next = group;
  const waiting = [...known.candidates.values()].sort(
    (a, b) => a.sinceMs - b.sinceMs || (a.occupant.memberId < b.occupant.memberId ? -1 : 1),
  );
  for (const candidate of waiting) {
    if (stagedSlots(next).length >= count) break;
    const slot = slotFor(next, candidate);
    if (slot === undefined) continue;
    next = withSlot(next, {
      ...slot,
      state: "STAGED",
      incarnation: nextIncarnation(slot.incarnation),
      occupant: candidate.occupant,
    });
  }
  return next;
}

function slotFor(group: Group, { occupant, wantedSlot }: Candidate): Slot | undefined {
  const isSeatedAlready = group.slots.some((slot) => slot.occupant?.memberId === occupant.memberId);
  if (isSeatedAlready) return undefined;
  return group.slots.find(
    ({ slot, state }) => state === "EMPTY" && (wantedSlot === null || wantedSlot === slot),
  );
}

export function stagedSlots(group: Group): Slot[] {
  return group.slots.filter(({ state }) => state === "STAGED");
}

/** @throws RelightError `ep_capacity`. */
export function plan(
  group: Group,
  known: Known,
  { joiners, leavers }: { readonly joiners: readonly Slot[]; readonly leavers: readonly Slot[] },
): Group {
  const staying = stayingSlots(group).filter((slot) => !leavers.includes(slot));
  const { expertCount, localExpertsMax, redundantCount } = group.config;
  const slots = [...staying, ...joiners].map(({ slot }) => slot);
  const placement = place({
    ...{ expertCount, localExpertsMax, redundantCount, slots },
    before: group.placement,
    load: known.load,
  });
  const number = group.lastNumber + 1;
  const transition: Transition = {
    number,
    joiners: joiners.map(seatOf),
    leavers: leavers.map(seatOf),
    placement,
    flip: null,
    attempts: 0,
  };
  return { ...group, lastNumber: number, transition };
}

/** Members as they are and those that join. */
function participants(group: Group, transition: Transition): Slot[] {
  return group.slots.filter(
    (slot) => isMember(slot) || transition.joiners.some((joiner) => isSameSeat(joiner, slot)),
  );
}

function statusesOf(group: Group, known: Known, transition: Transition): (Status | undefined)[] {
  return participants(group, transition).map((slot) => heardOf(known, slot)?.status);
}

/** Whether everybody has mapped everybody and holds the experts of the plan. */
export function isStaged(group: Group, known: Known, now: Now): boolean {
  const { transition } = group;
  if (transition === null) return false;
  const all = participants(group, transition);
  return all.every((slot) => {
    const heard = heardOf(known, slot);
    // A member that has not been heard for a while would keep the group at the gate.
    if (heard === undefined || now.nowMs - heard.heardAtMs > now.limits.flipMs) return false;
    const { status } = heard;
    return (
      status.ready === transition.number &&
      all.every((peer) => peer === slot || status.mapped.some((one) => isSameSeat(one, peer)))
    );
  });
}

/** Ten seconds ahead, from the usual lead. */
const doublingsMax = 10;

/** Picks the first step under the new membership, ahead of where anybody is. */
export function propose(group: Group, known: Known, now: Now): Group {
  const { transition } = group;
  if (transition === null) return group;
  const number = group.lastNumber + 1;
  const members = group.slots.filter(isMember).flatMap((slot) => heardOf(known, slot) ?? []);
  const leadMs = now.limits.leadMs * 2 ** Math.min(transition.attempts, doublingsMax);
  const aheads = members.map(({ status, stepsPerMs, heardAtMs }) => {
    const ms = leadMs + (now.nowMs - heardAtMs);
    return status.launchedStep + Math.ceil(stepsPerMs * ms);
  });
  const atStep = Math.max(group.lastStep, ...aheads) + 1;
  const flip = { number, epoch: group.epoch + 1, atStep };
  return {
    ...group,
    lastNumber: number,
    lastStep: atStep,
    proposedAtMs: now.nowMs,
    transition: { ...transition, flip, attempts: transition.attempts + 1 },
  };
}

export type Answers = "all" | "refused" | "waiting";

export function answersTo(group: Group, known: Known): Answers {
  const { transition } = group;
  const flip = transition?.flip ?? null;
  if (transition === null || flip === null) return "waiting";
  const statuses = statusesOf(group, known, transition);
  if (statuses.some((status) => status?.refused === flip.number)) return "refused";
  return statuses.every((status) => status?.armed === flip.number) ? "all" : "waiting";
}

/** The point of no return: everybody stops before the step, so everybody can take it together. */
export function commit(group: Group): Group {
  const { transition } = group;
  const flip = transition?.flip ?? null;
  if (transition === null || flip === null) return group;
  const { number, joiners, leavers, placement } = transition;
  const isOf = (seats: readonly Seat[], slot: Slot) => seats.some((one) => isSameSeat(one, slot));
  const slots = group.slots.map((slot): Slot => {
    if (isOf(joiners, slot)) return { ...slot, state: "ACTIVE", onAtStep: flip.atStep };
    return isOf(leavers, slot) ? { ...slot, offAtStep: flip.atStep } : slot;
  });
  return {
    ...group,
    slots,
    epoch: flip.epoch,
    transition: null,
    proposedAtMs: null,
    committed: { number, generation: nextGeneration(group), flip, leavers, placement },
  };
}

/** Whether everybody knows of the commit and has finished the steps before the flip. */
export function isPassed(group: Group, known: Known): boolean {
  const { committed } = group;
  return committed !== null && group.slots.every((slot) => hasPassed(slot, known, committed));
}

export function hasPassed(slot: Slot, known: Known, { generation, flip }: Committed): boolean {
  if (!isMember(slot)) return true;
  const status = heardOf(known, slot)?.status;
  if (status === undefined || status.generation < generation) return false;
  const isNew = slot.onAtStep === null || slot.onAtStep >= flip.atStep;
  return isNew || status.completedStep >= flip.atStep - 1;
}

/** The new owners are the owners; leavers are out, as they were asked to be. */
export function pass(group: Group): Group {
  const { committed } = group;
  if (committed === null) return group;
  const settled: Group = { ...group, placement: committed.placement, committed: null };
  const leaving = group.slots.filter((slot) =>
    committed.leavers.some((leaver) => isSameSeat(leaver, slot)),
  );
  // Not a death: the epoch that began without them is there already.
  return leaving.reduce((next, slot) => bury(next, { ...slot, state: "STAGED" }, "left"), settled);
}

export function capacityError(error: unknown): RelightError | null {
  return error instanceof RelightError && error.code === "ep_capacity" ? error : null;
}
