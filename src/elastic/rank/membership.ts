// SPDX-License-Identifier: Apache-2.0
// Who takes part in which steps and where tokens go, as one rank writes it into its device. Pure: the
// group carries commands out, this says what the device must then hold.

import {
  type Copy,
  isMember,
  isSameSeat,
  type Placement,
  type Seat,
  seatOf,
  type View,
} from "../view.ts";
import type { DeviceMember, OwnerTable } from "./device.ts";

/** No step comes to this. */
export const never = 2n ** 64n - 1n;

export interface Membership {
  readonly members: readonly DeviceMember[];
  /** For steps before `from`. */
  readonly now: Placement;
  readonly next: Placement;
  readonly from: number;
}

export interface Change {
  readonly atStep: number;
  readonly on: readonly Seat[];
  readonly off: readonly Seat[];
  readonly placement: Placement;
}

/** What a view says to a rank that has written nothing yet. */
export function membershipOf(view: View): Membership {
  const members = view.slots.filter(isMember).map((slot) => ({
    ...seatOf(slot),
    onAt: BigInt(slot.onAtStep ?? 0),
    offAt: slot.offAtStep === null ? never : BigInt(slot.offAtStep),
  }));
  return { members, now: view.placement, next: view.placement, from: 0 };
}

/** With a change that begins at a step ahead. */
export function withChange(before: Membership, change: Change, step: number): Membership {
  const at = BigInt(change.atStep);
  const stay = before.members.map((member) =>
    change.off.some((seat) => isSameSeat(seat, member)) ? { ...member, offAt: at } : member,
  );
  const join = change.on
    .filter((seat) => !stay.some((member) => isSameSeat(member, seat)))
    .map((seat) => ({ ...seatOf(seat), onAt: at, offAt: never }));
  return {
    // A slot has one occupant at a time: who was there before has passed its last step.
    members: [...stay.filter((old) => !join.some(({ slot }) => slot === old.slot)), ...join],
    now: ownersAt(before, step),
    next: change.placement,
    from: change.atStep,
  };
}

/** Without those that died; `next` replaces what a change ahead was to bring. */
export function withoutDead(
  before: Membership,
  dead: readonly Seat[],
  owners: { readonly now: Placement; readonly next: Placement | null },
): Membership {
  return {
    members: before.members.filter((member) => !dead.some((seat) => isSameSeat(seat, member))),
    now: owners.now,
    next: owners.next ?? owners.now,
    from: before.from,
  };
}

export function ownersAt({ now, next, from }: Membership, step: number): Placement {
  return step >= from ? next : now;
}

/** Slots that take part in a step, as a mask. */
export function membersAt({ members }: Membership, step: number): number {
  const at = BigInt(step);
  return maskOf(members.filter(({ onAt, offAt }) => onAt <= at && at < offAt));
}

export function maskOf(seats: readonly { readonly slot: number }[]): number {
  return seats.reduce((mask, { slot }) => (mask | (1 << slot)) >>> 0, 0);
}

/**
 * One copy of each expert for `slot` to send to: its own if it has one, else by turns, so that the ranks
 * of a group share the copies between them.
 */
export function ownerTable(placement: Placement, slot: number): OwnerTable {
  return placement.map((copies, expert) => chosen(copies, { expert, slot }));
}

function chosen(
  copies: readonly Copy[],
  { expert, slot }: { readonly expert: number; readonly slot: number },
): OwnerTable[number] {
  const copy = copies.find((one) => one.slot === slot) ?? copies[(expert + slot) % copies.length];
  return copy === undefined ? null : { slot: copy.slot, local: copy.local };
}

/** Experts that nobody holds. */
export function missingExperts(placement: Placement): number[] {
  return placement.flatMap((copies, expert) => (copies.length === 0 ? [expert] : []));
}
