// SPDX-License-Identifier: Apache-2.0
// Who is out when ranks accuse each other. A kernel's time-out is a suspicion; the verdict is one, the
// coordinator's, and after it nobody that stays accuses anybody that stays.

import { bury } from "./ends.ts";
import { type ControllerLimits, type Group, heardOf, type Known, withSlot } from "./group.ts";
import { isMember, isSameSeat } from "./view.ts";

interface Accusation {
  readonly from: number;
  readonly of: number;
}

/** Marks the accused at once, and judges once accusations have had time to come together. */
export function judge(group: Group, known: Known, now: Now): Group {
  const accusations = accusationsIn(group, known);
  const marked = mark(group, accusations);
  if (accusations.length === 0)
    return marked.accusedAtMs === null ? marked : { ...marked, accusedAtMs: null };
  if (marked.accusedAtMs === null) return { ...marked, accusedAtMs: now.nowMs };
  if (now.nowMs < marked.accusedAtMs + now.limits.graceMs) return marked;
  const condemned = condemn(accusations, (slot) => heardAt(group, known, slot));
  const buried = condemned.reduce((next, at) => {
    const slot = next.slots[at];
    return slot === undefined ? next : bury(next, slot, "suspected");
  }, marked);
  return { ...buried, accusedAtMs: null };
}

export interface Now {
  readonly nowMs: number;
  readonly limits: ControllerLimits;
}

function accusationsIn(group: Group, known: Known): Accusation[] {
  return group.slots.filter(isMember).flatMap((from) => {
    const suspects = heardOf(known, from)?.status.suspects ?? [];
    return suspects.flatMap(({ seat }) => {
      const of = group.slots[seat.slot];
      if (of === undefined || of === from || !isMember(of) || !isSameSeat(of, seat)) return [];
      return [{ from: from.slot, of: of.slot }];
    });
  });
}

function mark(group: Group, accusations: readonly Accusation[]): Group {
  return group.slots.reduce((next, slot) => {
    if (!isMember(slot)) return next;
    const state = accusations.some(({ of }) => of === slot.slot) ? "SUSPECT" : "ACTIVE";
    return state === slot.state ? next : withSlot(next, { ...slot, state });
  }, group);
}

/**
 * Whoever is in the most accusations, as accuser or accused, goes, until none is left: one rank with
 * broken links goes instead of everybody it accuses. Of two it is the one accused by more, then the one
 * not heard for longer, then the higher slot.
 */
export function condemn(
  accusations: readonly Accusation[],
  heardAtMs: (slot: number) => number,
): number[] {
  const condemned: number[] = [];
  for (let left = [...accusations]; left.length > 0; ) {
    const ranks = [...new Set(left.flatMap(({ from, of }) => [from, of]))];
    const count = (slot: number) => peersOf(left, slot).size;
    const accused = (slot: number) => left.filter(({ of }) => of === slot).length;
    ranks.sort(
      (a, b) =>
        count(b) - count(a) || accused(b) - accused(a) || heardAtMs(a) - heardAtMs(b) || b - a,
    );
    const [worst] = ranks;
    if (worst === undefined) break;
    condemned.push(worst);
    left = left.filter(({ from, of }) => from !== worst && of !== worst);
  }
  return condemned;
}

function peersOf(accusations: readonly Accusation[], slot: number): Set<number> {
  return new Set(
    accusations.flatMap(({ from, of }) => (from === slot ? [of] : of === slot ? [from] : [])),
  );
}

function heardAt(group: Group, known: Known, at: number): number {
  const slot = group.slots[at];
  return (slot === undefined ? undefined : heardOf(known, slot)?.heardAtMs) ?? 0;
}
