// SPDX-License-Identifier: Apache-2.0
// The whole of a group's life as one pure function: from the record, what is known of members and the
// time comes the next record. The caller writes it with compare-and-set before it tells anybody, and
// calls again at every word, at `wakeAtMs`, and after a restart, where members say again what they know.

import { beginOperation, findOperation, remember } from "./begin.ts";
import {
  answersTo,
  capacityError,
  commit,
  hasPassed,
  isPassed,
  isStaged,
  pass,
  plan,
  propose,
  seat,
  stagedSlots,
} from "./change.ts";
import { bury, isForgotten, settleFaults, sweep, takeEnds } from "./ends.ts";
import {
  type Group,
  heardOf,
  type Known,
  nextGeneration,
  stayingSlots,
  withSlot,
} from "./group.ts";
import {
  enter,
  isBeforeCommit,
  type Operation,
  type OperationPhase,
  type OperationRequest,
  operationLimits,
} from "./operation.ts";
import { lostExperts, movedCount } from "./placement.ts";
import { judge, type Now } from "./verdict.ts";
import { isMember, isSameSeat, type Slot } from "./view.ts";

export type { Now } from "./verdict.ts";

/** More than any decision needs; each round does at least one thing that cannot be done twice. */
const roundsMax = 64;

/** @returns the same record when there is nothing to do; else one of the next generation. */
export function decide(
  group: Group,
  known: Known,
  now: Now,
  /** What somebody asked for, to be decided together with the rest. */
  first: (group: Group) => Group = (same) => same,
): Group {
  let next = first(group);
  for (let round = 0; round < roundsMax; round++) {
    const after = decideOnce(next, known, now);
    if (after === next) break;
    next = after;
  }
  return next === group ? group : { ...next, generation: nextGeneration(group) };
}

/** When to decide again though nobody said anything; null: not before somebody does. */
export function wakeAtMs(group: Group, { nowMs }: Now): number | null {
  const isBusy =
    group.operation !== null ||
    group.committed !== null ||
    group.accusedAtMs !== null ||
    group.faults.some(({ isSettled }) => !isSettled);
  return isBusy ? nowMs + busyMs : null;
}

const busyMs = 50;

function decideOnce(group: Group, known: Known, now: Now): Group {
  const heard = settleFaults(judge(takeEnds(group, known), known, now), known);
  return sweep(followOperation(passIfDone(heard, known, now), known, now), known);
}

function passIfDone(group: Group, known: Known, now: Now): Group {
  const { committed } = group;
  if (committed === null) return group;
  if (isPassed(group, known)) return pass(group);
  return burySilent(group, known, now, (slot) => !hasPassed(slot, known, committed));
}

/** Gives up whom the group waits for and who has said nothing for a lease. */
function burySilent(group: Group, known: Known, now: Now, of: (slot: Slot) => boolean): Group {
  const silent = group.slots.find((slot) => {
    if (!of(slot)) return false;
    const heard = heardOf(known, slot);
    // After a restart everybody gets a lease to come back: while nobody listened silence proves nothing.
    return now.nowMs - Math.max(heard?.heardAtMs ?? 0, known.sinceMs) > now.limits.leaseMs;
  });
  return silent === undefined ? group : bury(group, silent, "silent");
}

function followOperation(group: Group, known: Known, now: Now): Group {
  const { operation } = group;
  if (operation === null) return openAutomatic(releaseStaged(group), known, now);
  if (isBeforeCommit(operation)) {
    const startedMs = operation.phases[0]?.atMs ?? now.nowMs;
    if (now.nowMs > startedMs + operation.request.timeoutMs)
      return fail(group, operation, late(operation), now);
    if (group.committed !== null) return group;
  }
  switch (operation.phase) {
    case "planned":
      return followPlanned(group, operation, known, now);
    case "staging":
      return followStaging(group, operation, known, now);
    case "flipping":
      return followFlipping(group, operation, known, now);
    case "committed":
      return followCommitted(group, operation, known, now);
    case "aborting":
      return finish(releaseStaged(group), operation, "aborted", now);
    case "done":
    case "aborted":
      return group;
  }
}

function followPlanned(group: Group, operation: Operation, known: Known, now: Now): Group {
  const wanted = want(group, operation, known);
  const { leavers, joinerCount } = wanted;
  const seated = seat(group, known, joinerCount);
  const staged = stagedSlots(seated);
  if (staged.length < joinerCount) {
    return burySilent(seated, known, now, ({ state }) => state === "STAGED");
  }
  const extra = staged[joinerCount];
  if (extra !== undefined) return bury(seated, extra, "aborted");
  try {
    const planned = plan(seated, known, { joiners: staged, leavers });
    if (isSame(planned)) return finish(seated, operation, "done", now);
    return { ...planned, operation: enter(operation, "staging", now.nowMs) };
  } catch (error) {
    const capacity = capacityError(error);
    if (capacity === null) throw error;
    return fail(seated, operation, { code: capacity.code, message: capacity.message }, now);
  }
}

/** Whether the plan changes nothing. */
function isSame({ transition, placement }: Group): boolean {
  if (transition === null || transition.joiners.length + transition.leavers.length > 0)
    return false;
  return JSON.stringify(transition.placement) === JSON.stringify(placement);
}

function want(
  group: Group,
  { request, by }: Operation,
  known: Known,
): { joinerCount: number; leavers: readonly Slot[] } {
  const staying = stayingSlots(group);
  if (request.kind === "remove") {
    const leavers = staying.filter(({ slot }) => request.remove.includes(slot));
    return { joinerCount: 0, leavers };
  }
  const back = by === "automatic" || group.targetRanks === 0 ? staying.length : group.targetRanks;
  const ranks = request.kind === "scale" ? request.ranks : back;
  // Who wants to go is not counted on: others come in its place, in the same change.
  const leaving = by === "automatic" ? [] : leavingSlots(group, known);
  const kept = staying.filter((slot) => !leaving.includes(slot));
  if (kept.length <= ranks) return { joinerCount: ranks - kept.length, leavers: leaving };
  const highest = [...kept].sort((a, b) => b.slot - a.slot).slice(0, kept.length - ranks);
  return { joinerCount: 0, leavers: [...leaving, ...highest] };
}

function leavingSlots(group: Group, known: Known): Slot[] {
  return stayingSlots(group).filter((slot) => heardOf(known, slot)?.status.isLeaving === true);
}

function followStaging(group: Group, operation: Operation, known: Known, now: Now): Group {
  if (group.transition === null) return replan(group, operation, now);
  if (isStaged(group, known, now)) {
    return { ...propose(group, known, now), operation: enter(operation, "flipping", now.nowMs) };
  }
  return burySilent(group, known, now, ({ state }) => state === "STAGED");
}

function followFlipping(group: Group, operation: Operation, known: Known, now: Now): Group {
  const { transition, proposedAtMs } = group;
  if (transition === null) return replan(group, operation, now);
  switch (answersTo(group, known)) {
    case "all":
      return commitOperation(group, operation, now);
    case "refused":
      return propose(group, known, now);
    case "waiting": {
      if (now.nowMs <= (proposedAtMs ?? 0) + now.limits.flipMs) return group;
      // Those who answered wait at the gate: let them go and try when everybody is heard again.
      const back = { ...group, transition: { ...transition, flip: null }, proposedAtMs: null };
      return { ...back, operation: enter(operation, "staging", now.nowMs) };
    }
  }
}

/** Somebody in the plan died: what is staged stays, the rest is decided anew. */
function replan(group: Group, operation: Operation, now: Now): Group {
  return { ...group, operation: enter(operation, "planned", now.nowMs) };
}

function commitOperation(group: Group, operation: Operation, now: Now): Group {
  const { transition } = group;
  if (transition === null) return group;
  const next = commit(group);
  const committed: Operation = {
    ...enter(operation, "committed", now.nowMs),
    joined: transition.joiners,
    removed: transition.leavers,
    movedExperts: movedCount(group.placement, transition.placement),
    epoch: next.epoch,
  };
  return { ...next, operation: committed };
}

function followCommitted(group: Group, operation: Operation, known: Known, now: Now): Group {
  if (group.committed !== null) return group;
  const isDone = operation.removed.every(({ slot, incarnation }) => {
    const left = group.slots[slot];
    if (left === undefined || !isSameSeat(left, { slot, incarnation })) return true;
    return left.state === "EMPTY" || isForgotten(group, known, left);
  });
  if (isDone) return finish(group, operation, "done", now);
  return burySilent(group, known, now, isMember);
}

function finish(group: Group, operation: Operation, phase: OperationPhase, now: Now): Group {
  const ended = enter(operation, phase, now.nowMs);
  return { ...group, operation: null, transition: null, finished: remember(group, ended) };
}

function fail(
  group: Group,
  operation: Operation,
  error: { readonly code: string; readonly message: string },
  now: Now,
): Group {
  const failed = { ...enter(operation, "aborting", now.nowMs), error };
  return { ...group, transition: null, proposedAtMs: null, operation: failed };
}

function late({ phase, request }: Operation): { code: string; message: string } {
  const what = phase === "planned" ? "too few ranks came" : `it was still ${phase}`;
  return {
    code: "deadline_exceeded",
    message: `Cannot finish "${request.operationId}" in ${request.timeoutMs} ms: ${what}`,
  };
}

/** What no operation wants is not kept waiting. */
function releaseStaged(group: Group): Group {
  return stagedSlots(group).reduce((next, slot) => bury(next, slot, "aborted"), group);
}

/** What the controller begins by itself: a rank that wants to go, a death, newcomers. */
function openAutomatic(group: Group, known: Known, now: Now): Group {
  if (group.committed !== null) return group;
  const request = automaticRequest(group, known);
  if (request === null || findOperation(group, request.operationId) !== null) return group;
  return beginOperation(group, request, { by: "automatic", nowMs: now.nowMs });
}

function automaticRequest(group: Group, known: Known): OperationRequest | null {
  const staying = stayingSlots(group);
  const base = {
    ranks: 0,
    remove: [],
    expectedEpoch: null,
    timeoutMs: operationLimits.timeoutMsDefault,
    confirmsDeath: false,
  };
  const [leaver] = leavingSlots(group, known);
  // An id for each attempt that may end differently, so that what cannot be done is not tried for ever.
  if (leaver !== undefined && staying.length > 1) {
    const id = `leave-${leaver.slot}-${leaver.incarnation}-${group.epoch}`;
    return { ...base, operationId: id, kind: "remove", remove: [leaver.slot] };
  }
  if (staying.length > 0 && lostExperts(group.placement).length > 0) {
    const id = `recover-${group.epoch}`;
    return { ...base, operationId: id, kind: "recover" };
  }
  if (group.config.admission !== "automatic") return null;
  const { slotCount } = group.config;
  const ranksMax = group.targetRanks === 0 ? slotCount : group.targetRanks;
  const added = stagedSlots(seat(group, known, ranksMax - staying.length)).length;
  const ranks = staying.length + added;
  // Too few to hold every expert: they wait for others.
  if (added === 0 || ranks * group.config.localExpertsMax < group.config.expertCount) return null;
  const id = `join-${group.lastNumber}-${group.generation}`;
  return { ...base, operationId: id, kind: "scale", ranks };
}

/** The caller's word that these processes have ended. */
export function confirmDeath(group: Group, slots: readonly number[]): Group {
  return slots.reduce((next, at) => {
    const slot = next.slots[at];
    if (slot === undefined || slot.state === "EMPTY") return next;
    if (slot.state === "DEAD") return withSlot(next, { ...slot, isEndKnown: true });
    return bury(next, slot, "exited", true);
  }, group);
}

/** What an operator may believe at any time. */
export interface Effective {
  readonly epoch: number;
  /** Slots that take part in steps. */
  readonly ranks: readonly number[];
  /** Slots whose processes nobody uses any more: killing them harms no step. */
  readonly safeToDeleteRanks: readonly number[];
  /** Experts that no rank holds. */
  readonly lostExperts: readonly number[];
}

export function effectiveOf(group: Group, known: Known): Effective {
  const dead = group.slots.filter(({ state }) => state === "DEAD");
  return {
    epoch: group.epoch,
    ranks: group.slots.filter(isMember).map(({ slot }) => slot),
    safeToDeleteRanks: dead
      .filter((slot) => isForgotten(group, known, slot))
      .map(({ slot }) => slot),
    lostExperts: group.slots.some(isMember) ? lostExperts(group.placement) : [],
  };
}
