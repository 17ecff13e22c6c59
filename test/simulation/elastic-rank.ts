// SPDX-License-Identifier: Apache-2.0
// A simulated rank: production's rank protocol, on a device that is only what membership is about: which
// peers are mapped, who takes part in which step, and whether a step's exchange met everybody.

import {
  hearReport,
  hearView,
  type Member,
  newMember,
  othersEnded,
  processEnded,
} from "../../src/elastic/member.ts";
import type { Command, Report } from "../../src/elastic/session.ts";
import { isSameSeat, type Seat, type View } from "../../src/elastic/view.ts";
import type { Chance, Timeline } from "./timeline.ts";

/** A kernel waits this long for a peer: longer than a flip is put ahead, and than a restart takes. */
const waitMs = 250;
const stepMs = 2;
/** From a peer's step to its being seen here. */
const wireMs = 0.05;

interface OnOff {
  readonly seat: Seat;
  onAt: number;
  offAt: number;
}

export interface Step {
  readonly step: number;
  readonly rank: string;
  readonly seat: Seat;
  readonly members: readonly string[];
}

/** What ranks share: who launched what, as their windows would show it. */
export interface Fabric {
  readonly timeline: Timeline;
  readonly chance: Chance;
  readonly ranks: Map<string, SimRank>;
  isBusy: boolean;
  readonly onStep: (step: Step, isGood: boolean) => void;
}

export class SimRank {
  readonly name: string;
  readonly nodeId: string;
  member: Member;
  /** The process; its agent outlives it. */
  isAlive = true;
  isFrozen = false;
  /** The agent, and with it everything that could be said of the process. */
  hasAgent = true;
  readonly mapped = new Map<number, number>();
  readonly #fabric: Fabric;
  readonly #tell: () => void;
  readonly #peers = new Map<number, OnOff>();
  readonly #suspects = new Set<string>();
  #armed: { number: number; on: readonly Seat[]; off: readonly Seat[]; atStep: number } | null =
    null;
  #gate = Number.POSITIVE_INFINITY;
  #launched = 0;
  #completed = 0;
  /** Of the latest step. */
  #sentTo: readonly string[] = [];
  #mustReach = 0;
  #running: { step: Step; sinceMs: number; failed: Set<string> } | null = null;
  #firstFaulty: number | null = null;
  #isTicking = false;
  #backlog: Command[] = [];

  constructor(name: string, nodeId: string, fabric: Fabric, tell: () => void) {
    this.name = name;
    this.nodeId = nodeId;
    this.#fabric = fabric;
    this.#tell = tell;
    this.member = newMember(name);
  }

  get seat(): Seat | null {
    return this.member.isOver ? null : this.member.status.seat;
  }

  get launched(): number {
    return this.#launched;
  }

  /** Its host runs, it holds a seat and takes part in steps. */
  get isRunning(): boolean {
    return this.isAlive && this.seat !== null && this.#own() !== undefined;
  }

  hear(view: View): void {
    if (!this.hasAgent) return;
    const [member, commands] = hearView(this.member, view);
    const isNew = member !== this.member;
    this.member = member;
    for (const command of commands) this.#receive(command);
    if (isNew) this.#tell();
  }

  testify(seat: Seat): void {
    const before = this.member;
    this.member = othersEnded(this.member, [seat]);
    if (this.member !== before) this.#tell();
  }

  refuse(): void {
    if (this.isAlive && !this.member.isOver) this.#receive({ type: "evicted", ended: "stale" });
    this.member = { ...this.member, isOver: true };
  }

  kill(): void {
    if (!this.isAlive) return;
    this.isAlive = false;
    this.#running = null;
    this.mapped.clear();
    this.#fabric.timeline.after(this.#fabric.chance.between(1, 20), () => {
      if (!this.hasAgent) return;
      this.member = processEnded(this.member);
      this.#tell();
    });
  }

  thaw(): void {
    this.isFrozen = false;
    this.#work();
    // What its kernels found meanwhile its host reads only now.
    for (const suspect of this.#suspects) this.#accuse(suspect, this.#completed);
  }

  leave(): void {
    if (this.isAlive && !this.isFrozen && this.seat !== null) this.#report({ type: "leave" });
  }

  /** Everybody who takes part in `step` as far as this device knows. */
  membersAt(step: number): string[] {
    return [...this.#peers.values()]
      .filter(({ onAt, offAt }) => onAt <= step && step < offAt)
      .filter(({ seat }) => !this.#suspects.has(textOf(seat)))
      .map(({ seat }) => textOf(seat))
      .sort();
  }

  /** What a peer's kernel sees in this one's window: it launched `step` and took that peer for a member. */
  hasSent(step: number, to: Seat): boolean {
    if (this.#launched !== step) return this.#launched > step;
    return this.#sentTo.includes(textOf(to));
  }

  tick(): void {
    if (this.#isTicking) return;
    this.#isTicking = true;
    this.#fabric.timeline.after(stepMs * this.#fabric.chance.between(0.6, 1.4), () => {
      this.#isTicking = false;
      if (!this.isAlive || this.member.isOver) return;
      this.#advance();
      this.tick();
    });
  }

  #advance(): void {
    // A frozen host launches nothing; a kernel that runs goes on.
    if (this.#running !== null) this.#look();
    if (this.#running === null && !this.isFrozen && this.#mayLaunch()) this.#launch();
  }

  #mayLaunch(): boolean {
    const next = this.#launched + 1;
    const own = this.#own();
    if (own === undefined || next < own.onAt || next >= own.offAt || next >= this.#gate)
      return false;
    if (this.#fabric.isBusy || next <= this.#mustReach) return true;
    // Idle, but peers wait for this step.
    return [...this.#fabric.ranks.values()].some(
      (rank) => rank !== this && rank.isRunning && rank.launched >= next,
    );
  }

  #own(): OnOff | undefined {
    const slot = this.member.status.seat?.slot;
    return slot === undefined ? undefined : this.#peers.get(slot);
  }

  #launch(): void {
    const { seat } = this.member.status;
    if (seat === null) return;
    const step = this.#launched + 1;
    this.#launched = step;
    const what = { step, rank: this.name, seat, members: this.membersAt(step) };
    this.#sentTo = what.members;
    this.#running = { step: what, sinceMs: this.#fabric.timeline.nowMs, failed: new Set() };
    this.#look();
  }

  #look(): void {
    const running = this.#running;
    if (running === null) return;
    const { step, sinceMs, failed } = running;
    const isLate = this.#fabric.timeline.nowMs - sinceMs > waitMs;
    let isWaiting = false;
    for (const member of step.members) {
      if (member === textOf(step.seat) || failed.has(member)) continue;
      if (this.#suspects.has(member) || !this.#isMemberNow(member)) failed.add(member);
      else if (this.#peer(member)?.hasSent(step.step, step.seat) === true) continue;
      else if (isLate) this.#giveUp(member, step.step, failed);
      else isWaiting = true;
    }
    if (isWaiting) return;
    this.#running = null;
    this.#completed = step.step;
    if (failed.size > 0) this.#firstFaulty ??= step.step;
    this.#fabric.onStep(step, failed.size === 0);
    if (!this.isFrozen) this.#progress();
  }

  /** A mask that the host wrote while the kernel waits ends the wait. */
  #isMemberNow(member: string): boolean {
    return [...this.#peers.values()].some(({ seat }) => textOf(seat) === member);
  }

  #peer(member: string): SimRank | undefined {
    for (const rank of this.#fabric.ranks.values()) {
      const { seat } = rank.member.status;
      if (seat !== null && textOf(seat) === member) return rank;
    }
    return undefined;
  }

  #giveUp(member: string, step: number, failed: Set<string>): void {
    failed.add(member);
    this.suspect(member, step);
    for (const other of this.membersAt(step)) {
      const peer = this.#peer(other);
      // Gossip into the windows of those that this one has not given up.
      if (peer !== undefined && peer !== this && peer.isAlive) peer.hearGossip(member, step, this);
    }
  }

  hearGossip(member: string, step: number, from: SimRank): void {
    const { seat } = from.member.status;
    if (seat === null || !this.membersAt(step).includes(textOf(seat))) return;
    if (member !== textOf(this.member.status.seat ?? seat)) this.suspect(member, step);
  }

  suspect(member: string, step: number): void {
    if (this.#suspects.has(member)) return;
    this.#suspects.add(member);
    if (!this.isFrozen) this.#accuse(member, step);
  }

  #accuse(member: string, step: number): void {
    const [slot = 0, incarnation = 0] = member.split("/").map(Number);
    this.#report({ type: "suspect", seat: { slot, incarnation }, step });
  }

  #progress(): void {
    this.#report({
      type: "progress",
      launchedStep: this.#launched,
      completedStep: this.#completed,
    });
  }

  #report(report: Report): void {
    const before = this.member;
    this.member = hearReport(this.member, report);
    // Progress is told with the next heartbeat, unless somebody may be waiting for it.
    const isUrgent = report.type !== "progress" || this.member.view?.committed !== null;
    if (this.member !== before && isUrgent) this.#tell();
  }

  /** One after the other, as the contract says. */
  #receive(command: Command): void {
    this.#backlog.push(command);
    if (this.#backlog.length === 1) this.#work();
  }

  #work(): void {
    const [command] = this.#backlog;
    if (command === undefined || !this.isAlive || this.isFrozen) return;
    const { timeline, chance } = this.#fabric;
    const slowMs = command.type === "prepare" || command.type === "map" ? 30 : 0.5;
    timeline.after(chance.between(0, slowMs) + wireMs, () => {
      // A host that was frozen meanwhile goes on with it when it thaws.
      if (!this.isAlive || this.isFrozen || this.#backlog[0] !== command) return;
      this.#carryOut(command);
      this.#backlog.shift();
      this.#work();
    });
  }

  #carryOut(command: Command): void {
    switch (command.type) {
      case "map": {
        const { slot, incarnation } = command.seat;
        if (this.member.isOver) return;
        this.mapped.set(slot, incarnation);
        // Members of before are in the device's tables from the view that seated this one.
        this.#report({ type: "mapped", seat: command.seat });
        return;
      }
      case "unmap": {
        const { slot, incarnation } = command.seat;
        if (this.mapped.get(slot) === incarnation) this.mapped.delete(slot);
        this.#drop(command.seat);
        this.#report({ type: "unmapped", seat: command.seat });
        return;
      }
      case "prepare":
        this.#report({ type: "ready", number: command.number });
        return;
      case "arm":
        this.#arm(command);
        return;
      case "commit":
        if (this.#armed?.number !== command.number) return;
        this.#armed = null;
        this.#gate = Number.POSITIVE_INFINITY;
        this.#mustReach = command.atStep - 1;
        this.tick();
        this.#progress();
        return;
      case "disarm":
        if (this.#armed?.number === command.number) this.#disarm();
        return;
      case "mask":
        for (const seat of command.seats) this.#drop(seat);
        this.#report({
          type: "masked",
          epoch: command.epoch,
          firstFaultyStep: this.#firstFaulty,
        });
        this.#firstFaulty = null;
        return;
      case "release":
      case "evicted":
        this.#running = null;
        this.#peers.clear();
        this.mapped.clear();
        this.#report({ type: "quiesced" });
        return;
      case "seat":
        this.#takeSeat(command.view);
        this.tick();
        return;
      case "replay":
      case "settled":
        return;
    }
  }

  /** The tables of a rank that joins: everybody who is a member when it is armed. */
  #takeSeat(view: View): void {
    for (const slot of view.slots) {
      if (slot.onAtStep === null || slot.state === "DEAD") continue;
      const { onAtStep: onAt, offAtStep } = slot;
      const seat = { slot: slot.slot, incarnation: slot.incarnation };
      this.#peers.set(slot.slot, { seat, onAt, offAt: offAtStep ?? Number.POSITIVE_INFINITY });
    }
  }

  #arm(command: Extract<Command, { type: "arm" }>): void {
    const { number, atStep, on, off } = command;
    this.#disarm();
    const { seat } = this.member.status;
    const isJoining = on.some((one) => seat !== null && isSameSeat(one, seat));
    if (isJoining) {
      this.#launched = atStep - 1;
      this.#completed = atStep - 1;
      if (this.member.view !== null) this.#takeSeat(this.member.view);
    } else if (this.#launched >= atStep) {
      this.#report({ type: "refused", number, launchedStep: this.#launched });
      return;
    }
    for (const one of on) {
      this.#peers.set(one.slot, { seat: one, onAt: atStep, offAt: Number.POSITIVE_INFINITY });
    }
    for (const one of off) {
      const peer = this.#peers.get(one.slot);
      if (peer !== undefined && isSameSeat(peer.seat, one)) peer.offAt = atStep;
    }
    this.#armed = { number, on, off, atStep };
    this.#gate = atStep;
    this.#progress();
    this.#report({ type: "armed", number });
  }

  #disarm(): void {
    const armed = this.#armed;
    if (armed === null) return;
    this.#armed = null;
    this.#gate = Number.POSITIVE_INFINITY;
    for (const seat of armed.on) this.#drop(seat);
    for (const { slot } of armed.off) {
      const peer = this.#peers.get(slot);
      if (peer !== undefined) peer.offAt = Number.POSITIVE_INFINITY;
    }
  }

  #drop(seat: Seat): void {
    const peer = this.#peers.get(seat.slot);
    if (peer !== undefined && isSameSeat(peer.seat, seat)) this.#peers.delete(seat.slot);
    this.#suspects.delete(textOf(seat));
  }
}

export function textOf({ slot, incarnation }: Seat): string {
  return `${slot}/${incarnation}`;
}
