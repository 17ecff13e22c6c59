// SPDX-License-Identifier: Apache-2.0
// A rank's side of the protocol, as pure functions: a view gives commands, a report changes what the
// coordinator is told. Each view is whole, so it does not matter how many of them were missed.

import type { Command, NeededExpert, Report } from "./session.ts";
import { firstStatus, type Status, type Suspicion } from "./status.ts";
import {
  type Copy,
  isMember,
  isSameSeat,
  isSeated,
  type Placement,
  type Seat,
  type Slot,
  seatOf,
  type View,
} from "./view.ts";

export interface Member {
  readonly status: Status;
  readonly view: View | null;
  /** Plan whose experts were last asked for. */
  readonly asked: number;
  /** The latest epoch whose deaths the rank was told to mask. */
  readonly maskAsked: number;
  readonly unmapping: readonly Seat[];
  /** Proposal that `arm` was last given for; 0 when none stands. */
  readonly armedFor: number;
  readonly isCommitted: boolean;
  /** The latest epoch whose first faulty step was passed on. */
  readonly replayed: number;
  /** Said by its agent: the process is gone, nobody carries commands out. */
  readonly hasEnded: boolean;
  readonly isOver: boolean;
}

const faultyMax = 8;

export function newMember(memberId: string): Member {
  return {
    status: firstStatus(memberId),
    view: null,
    asked: 0,
    maskAsked: 0,
    unmapping: [],
    armedFor: 0,
    isCommitted: false,
    replayed: 0,
    hasEnded: false,
    isOver: false,
  };
}

/** As another agent left it: what the rank has been told already it is told again at most. */
export function resumedMember(status: Status): Member {
  return {
    ...newMember(status.memberId),
    status: { ...status, generation: 0, isHungUp: false, sequence: status.sequence + 1 },
    asked: status.ready,
    maskAsked: status.maskedEpoch,
    armedFor: status.armed,
    replayed: status.maskedEpoch,
  };
}

/** What to do about a view; nothing about one that is not newer. */
export function hearView(member: Member, view: View): [Member, Command[]] {
  if (member.isOver || view.generation <= member.status.generation) return [member, []];
  const commands: Command[] = [];
  const seated = takeSeat(member, view, commands);
  const { seat } = seated.status;
  const own = view.slots.find((slot) => slot.slot === seat?.slot);
  if (seat === null || own === undefined) return [acted(seated, view), []];
  const over = isOver(own, seat);
  if (member.hasEnded) return [{ ...witness(acted(seated, view)), isOver: over !== null }, []];
  if (over !== null) return [{ ...acted(seated, view), isOver: true }, [...commands, over]];
  let next = seated;
  next = followDeaths(next, own, view, commands);
  next = followSeats(next, view, commands);
  next = followPlan(next, own, view, commands);
  next = followFlip(next, view, commands);
  next = followReplay(next, view, commands);
  return [acted(next, view), commands];
}

/** Its agent knows that the process is gone: that is all there is to say about it from now on. */
export function processEnded(member: Member): Member {
  return witness({ ...member, hasEnded: true });
}

/** Its agent has lost it, and does not know whether it lives. */
export function processLost(member: Member): Member {
  return { ...member, status: told(member.status, { isHungUp: true }) };
}

/** What its agent found out about other processes of its node. */
export function othersEnded(member: Member, gone: readonly Seat[]): Member {
  const { status } = member;
  const added = gone.filter((seat) => !status.gone.some((one) => isSameSeat(one, seat)));
  if (added.length === 0) return member;
  return { ...member, status: told(status, { gone: [...status.gone, ...added] }) };
}

function witness(member: Member): Member {
  const { status } = member;
  const gone = status.seat === null ? [] : [status.seat];
  return { ...member, status: told(status, { isHungUp: true, gone }) };
}

function acted(member: Member, view: View): Member {
  return { ...member, view, status: told(member.status, { generation: view.generation }) };
}

function told(status: Status, change: Partial<Status>): Status {
  return { ...status, ...change, sequence: status.sequence + 1 };
}

function takeSeat(member: Member, view: View, commands: Command[]): Member {
  if (member.status.seat !== null) return member;
  const mine = view.slots.find(({ occupant }) => occupant?.memberId === member.status.memberId);
  if (mine === undefined) return member;
  const seat = seatOf(mine);
  commands.push({ type: "seat", seat, view });
  // Deaths before its time are nothing to it.
  const status = told(member.status, { seat, maskedEpoch: view.epoch });
  return { ...member, status, replayed: view.epoch, maskAsked: view.epoch };
}

function isOver(own: Slot, seat: Seat): Command | null {
  if (!isSameSeat(own, seat) || own.state === "EMPTY") return { type: "evicted", ended: "stale" };
  if (own.state !== "DEAD" || own.ended === null) return null;
  const isPolite = own.ended === "left" || own.ended === "aborted";
  return { type: isPolite ? "release" : "evicted", ended: own.ended };
}

/** Masks first: what is unmapped afterwards must not be waited for. */
function followDeaths(member: Member, own: Slot, view: View, commands: Command[]): Member {
  const epoch = view.faults.at(-1)?.epoch ?? 0;
  if (!isMember(own) || epoch <= member.maskAsked) return member;
  const dead = view.slots.filter(
    (slot) => slot.state === "DEAD" && slot.onAtStep !== null && holds(member.status, slot),
  );
  const ended = dead.flatMap((slot) => slot.ended ?? []);
  const { placement } = view;
  const next = view.committed?.placement ?? null;
  commands.push({ type: "mask", epoch, seats: dead.map(seatOf), ended, placement, next });
  return { ...member, maskAsked: epoch };
}

function followSeats(member: Member, view: View, commands: Command[]): Member {
  const { status } = member;
  const wanted = view.slots.filter((slot) => isSeated(slot) && slot.slot !== status.seat?.slot);
  const gone = status.holds.filter(
    (seat) =>
      !wanted.some((slot) => isSameSeat(slot, seat)) &&
      !member.unmapping.some((one) => isSameSeat(one, seat)),
  );
  for (const seat of gone) commands.push({ type: "unmap", seat });
  const added = wanted.filter((slot) => !holds(status, slot));
  for (const slot of added) {
    if (slot.occupant === null) continue;
    commands.push({ type: "map", seat: seatOf(slot), occupant: slot.occupant });
  }
  const unmapping = [...member.unmapping, ...gone];
  if (added.length === 0) return { ...member, unmapping };
  const held = [...status.holds, ...added.map(seatOf)];
  return { ...member, unmapping, status: told(status, { holds: held }) };
}

function holds(status: Status, seat: Seat): boolean {
  return status.holds.some((one) => isSameSeat(one, seat));
}

function followPlan(member: Member, own: Slot, view: View, commands: Command[]): Member {
  const plan = view.transition;
  if (plan === null || plan.number === member.asked || !takesPart(own, view)) return member;
  const { number, placement } = plan;
  const asked = { ...member, asked: number };
  const experts = neededExperts(own.slot, view.placement, placement);
  if (experts.length === 0) return { ...asked, status: told(member.status, { ready: number }) };
  commands.push({ type: "prepare", number, experts, placement });
  return asked;
}

/** Members do, and joiners of this plan. */
function takesPart(own: Slot, view: View): boolean {
  return isMember(own) || (view.transition?.joiners.some((seat) => isSameSeat(seat, own)) ?? false);
}

/** Copies that `slot` has in `next` and does not have in `now`. */
export function neededExperts(slot: number, now: Placement, next: Placement): NeededExpert[] {
  return next.flatMap((copies, expert) => {
    const mine = copyAt(copies, slot);
    const old = now[expert] ?? [];
    const before = copyAt(old, slot);
    if (mine === undefined || before?.local === mine.local) return [];
    return [{ expert, local: mine.local, from: old.filter((copy) => copy.slot !== slot) }];
  });
}

function copyAt(copies: readonly Copy[], slot: number): Copy | undefined {
  return copies.find((copy) => copy.slot === slot);
}

function followFlip(member: Member, view: View, commands: Command[]): Member {
  const { transition, committed } = view;
  const seat = member.status.seat;
  const own = view.slots.find(({ slot }) => slot === seat?.slot);
  let next = member;
  if (next.armedFor !== 0 && committed?.flip.number === next.armedFor && !next.isCommitted) {
    const { number, epoch, atStep } = committed.flip;
    commands.push({ type: "commit", number, epoch, atStep });
    next = { ...next, isCommitted: true };
  }
  if (next.isCommitted && committed === null) {
    commands.push({ type: "settled", epoch: view.epoch, placement: view.placement });
    next = { ...next, isCommitted: false, armedFor: 0 };
  }
  const proposed = transition?.flip ?? null;
  const isStale = next.armedFor !== 0 && !next.isCommitted && proposed?.number !== next.armedFor;
  if (isStale) {
    commands.push({ type: "disarm", number: next.armedFor });
    next = { ...next, armedFor: 0, status: told(next.status, { armed: 0 }) };
  }
  if (proposed === null || transition === null || own === undefined) return next;
  if (proposed.number === next.armedFor || !takesPart(own, view)) return next;
  const { number, atStep } = proposed;
  const { joiners: on, leavers: off, placement } = transition;
  commands.push({ type: "arm", number, atStep, on, off, placement });
  return { ...next, armedFor: number };
}

function followReplay(member: Member, view: View, commands: Command[]): Member {
  const settled = view.faults.filter(
    ({ epoch, isSettled }) => isSettled && epoch > member.replayed,
  );
  for (const { epoch, firstFaultyStep } of settled) {
    commands.push({ type: "replay", epoch, firstFaultyStep });
  }
  const last = settled.at(-1);
  return last === undefined ? member : { ...member, replayed: last.epoch };
}

/** What changes by the rank's word. Answers to what no longer stands change nothing. */
export function hearReport(member: Member, report: Report): Member {
  const { status } = member;
  const change = changeBy(member, report);
  return change === null ? member : { ...member, status: told(status, change) };
}

function changeBy(member: Member, report: Report): Partial<Status> | null {
  const { status } = member;
  switch (report.type) {
    case "mapped":
      return status.holds.some((seat) => isSameSeat(seat, report.seat))
        ? { mapped: withSeat(status.mapped, report.seat) }
        : null;
    case "unmapped":
      return {
        holds: withoutSeat(status.holds, report.seat),
        mapped: withoutSeat(status.mapped, report.seat),
      };
    case "ready":
      return report.number === member.asked ? { ready: report.number } : null;
    case "armed":
      return report.number === member.armedFor ? { armed: report.number } : null;
    case "refused":
      if (report.number !== member.armedFor) return null;
      return {
        refused: report.number,
        launchedStep: Math.max(status.launchedStep, report.launchedStep),
      };
    case "masked": {
      const { epoch, firstFaultyStep } = report;
      const suspects = member.view === null ? [] : stillSeated(status.suspects, member.view);
      const faulty = [...status.faulty, { epoch, firstFaultyStep }].slice(-faultyMax);
      return { maskedEpoch: Math.max(status.maskedEpoch, epoch), faulty, suspects };
    }
    case "progress":
      return {
        launchedStep: Math.max(status.launchedStep, report.launchedStep),
        completedStep: Math.max(status.completedStep, report.completedStep),
      };
    case "suspect": {
      const { seat, step } = report;
      if (status.suspects.some((suspicion) => isSameSeat(suspicion.seat, seat))) return null;
      return { suspects: [...status.suspects, { seat, step }] };
    }
    case "leave":
      return { isLeaving: true };
    case "quiesced":
      return { isQuiesced: true, holds: [], mapped: [] };
    case "load":
      return null;
  }
}

function stillSeated(suspects: readonly Suspicion[], view: View): readonly Suspicion[] {
  return suspects.filter(({ seat }) =>
    view.slots.some((slot) => isSeated(slot) && isSameSeat(slot, seat)),
  );
}

function withSeat(seats: readonly Seat[], seat: Seat): readonly Seat[] {
  return seats.some((one) => isSameSeat(one, seat)) ? seats : [...seats, seatOf(seat)];
}

function withoutSeat(seats: readonly Seat[], seat: Seat): readonly Seat[] {
  return seats.filter((one) => !isSameSeat(one, seat));
}
