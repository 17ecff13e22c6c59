// SPDX-License-Identifier: Apache-2.0
// One rank's place in an expert group: it carries out what membership says (session.ts) between and under
// the steps of the engine's loop, and tells what became of each step. Windows are mapped and experts
// loaded while steps run; who takes part changes between two launches, or, by a death, under one.

import { asRelightError, RelightError } from "../../errors.ts";
import type { Command as GpuCommand } from "../../gpu/driver.ts";
import { startDeadlineOn } from "../../platform/deadline.ts";
import type { Command, MembershipSession } from "../session.ts";
import { isSameSeat, type Placement, type Seat } from "../view.ts";
import type { FetchedWindow, RankDevice } from "./device.ts";
import {
  type Membership,
  maskOf,
  membersAt,
  membershipOf,
  missingExperts,
  ownersAt,
  ownerTable,
  withChange,
  withoutDead,
} from "./membership.ts";
import type { EpGroupOptions, GroupEvent, StepOutcome } from "./options.ts";
import { lostIn, slotsIn } from "./outcome.ts";
import { Turns } from "./turns.ts";
import { alive, raced } from "./waits.ts";

/** The gate that `arm` closes: nothing that contains `atStep` starts before the commit. */
interface Gate {
  readonly number: number;
  readonly atStep: number;
  readonly before: Membership;
  readonly joined: readonly Seat[];
  readonly left: readonly Seat[];
  readonly opened: PromiseWithResolvers<void>;
}

const retryMs = 20;

export class EpGroup implements AsyncDisposable {
  readonly seat: Seat;
  readonly device: RankDevice;
  readonly #options: EpGroupOptions;
  readonly #session: MembershipSession;
  /** Steps, and what must not overlap with one. */
  readonly #idle = new Turns();
  /** Mapping and unmapping of one slot keep their order; slots do not wait for each other. */
  readonly #slots = new Map<number, Turns>();
  readonly #ending = new AbortController();
  #preparing = new AbortController();
  #membership: Membership;
  #gate: Gate | null = null;
  #firstStep = 0;
  #launched = 0;
  #completed = 0;
  #firstFaulty: number | null = null;
  #suspected = 0;
  #faults = 0n;
  #maskings = 0;
  #toldAtMs = 0;
  #following: Promise<void> = Promise.resolve();

  /**
   * Asks for a seat, takes the rank's memory and follows the group from then on. The rank takes part from
   * the step at which the group lets it in; `step()` waits for it.
   * @throws deadline_exceeded (no seat in time), device_memory, whatever the session refuses by
   */
  static async join(options: EpGroupOptions, signal: AbortSignal): Promise<EpGroup> {
    const { clock, limits } = options;
    using deadline = startDeadlineOn(clock, {
      what: "joining the group",
      ms: limits.seatMsMax,
      parent: signal,
    });
    const request = {
      config: options.config,
      occupant: { ...options.occupant, address: options.windows.address },
      wantedSlot: options.wantedSlot,
    };
    const session = await options.open(request, deadline.signal);
    try {
      const commands = session.commands[Symbol.asyncIterator]();
      const first = await raced(commands.next(), deadline.signal);
      if (first.done === true || first.value.type !== "seat") {
        throw new RelightError("conflict", "Cannot join the group: it gave no seat");
      }
      const { seat, view } = first.value;
      options.onEvent({ type: "seated", seat });
      const opening = options.openDevice(seat);
      // Peers may ask for the window as soon as they see the seat: they wait for the device as we do.
      options.windows.offer(seat, async () => (await opening).exportWindow());
      const device = await alive(opening, session, options);
      const parts = { seat, device, session, options, membership: membershipOf(view) };
      const group = new EpGroup(parts);
      group.#following = group.#follow(commands);
      return group;
    } catch (error) {
      await session.close();
      throw error;
    }
  }

  private constructor(fields: {
    seat: Seat;
    device: RankDevice;
    session: MembershipSession;
    options: EpGroupOptions;
    membership: Membership;
  }) {
    this.seat = fields.seat;
    this.device = fields.device;
    this.#session = fields.session;
    this.#options = fields.options;
    this.#membership = fields.membership;
    void this.#beat();
  }

  /** Resolves when nothing of the membership is left: no kernel runs, no peer is mapped. */
  get over(): Promise<void> {
    return this.#following;
  }

  /** Fires with the reason when the rank is out. */
  get ended(): AbortSignal {
    return this.#ending.signal;
  }

  /** The first step that this rank takes part in; 0 before the group lets it in. */
  get firstStep(): number {
    return this.#firstStep;
  }

  /** The step that the next run begins with. */
  get nextStep(): number {
    return this.#launched + 1;
  }

  /** Slots that take part in the next step. */
  get members(): number {
    return membersAt(this.#membership, this.nextStep);
  }

  /**
   * Runs commands that contain `steps` dispatches and as many combines, when this rank may. A step that
   * was not good is to be done again with the same input; membership has changed by then or will have.
   * @throws what ended the rank; cancelled; deadline_exceeded; device_lost
   */
  async step(
    commands: readonly GpuCommand[],
    { steps = 1, signal }: { readonly steps?: number; readonly signal: AbortSignal },
  ): Promise<StepOutcome> {
    for (;;) {
      await this.#mayLaunch(steps, signal);
      const outcome = await this.#idle.take(() => this.#run(commands, steps, signal));
      if (outcome !== null) return outcome;
    }
  }

  /** Asks to go; the rank keeps stepping until the event `ended`. */
  leave(): void {
    this.#session.report({ type: "leave" });
  }

  /** Tokens routed to each expert lately, for the next plan. */
  tellLoad(experts: readonly number[]): void {
    this.#session.report({ type: "load", experts });
  }

  /** Lets go of the session; without a leave before it this is a crash to the group. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#end(new RelightError("cancelled", "Cannot go on: the group was closed here"));
    await this.#session.close();
    await this.#following.catch(() => undefined);
  }

  /** Waits at the gate, and for this rank's own first step. */
  async #mayLaunch(steps: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      this.#ending.signal.throwIfAborted();
      const gate = this.#gate;
      const isIn = (this.members & (1 << this.seat.slot)) !== 0;
      if (gate === null && isIn) return;
      if (gate !== null && isIn && this.#launched + steps < gate.atStep) return;
      this.#tellProgress(true);
      const both = AbortSignal.any([signal, this.#ending.signal]);
      await raced(gate?.opened.promise ?? this.#changed.promise, both);
    }
  }

  #changed = Promise.withResolvers<void>();

  /** @returns null when the gate was closed while this run waited for its turn. */
  async #run(
    commands: readonly GpuCommand[],
    steps: number,
    signal: AbortSignal,
  ): Promise<StepOutcome | null> {
    this.#ending.signal.throwIfAborted();
    const first = this.nextStep;
    const last = first + steps - 1;
    if (this.#gate !== null && last >= this.#gate.atStep) return null;
    const wait = { signal, deadlineMs: this.#options.limits.stepMsMax };
    const membership = this.#membership;
    const maskings = this.#maskings;
    this.#launched = last;
    this.#tellProgress(false);
    await this.device.run(commands, wait);
    const report = await this.device.report(wait);
    const lost = lostIn(report, { last: BigInt(last), expected: membersAt(membership, last) });
    // Of several steps only the last one's result is still there to be read.
    const isUnclear = steps > 1 && this.#maskings !== maskings;
    const isGood = lost === 0 && report.fault.count === this.#faults && !isUnclear;
    this.#faults = report.fault.count;
    this.#completed = last;
    if (!isGood) this.#firstFaulty ??= first;
    this.#tellSuspects(report.suspect, last);
    this.#tellProgress(false);
    return {
      ...{ first, last, isGood },
      lost: slotsIn(lost),
      missingExperts: missingExperts(ownersAt(membership, last)),
    };
  }

  async #beat(): Promise<void> {
    const { clock, limits } = this.#options;
    while (!this.#ending.signal.aborted) {
      this.#tellProgress(true);
      await clock.sleep(limits.beatMs, this.#ending.signal).catch(() => undefined);
    }
  }

  async #follow(commands: AsyncIterator<Command>): Promise<void> {
    try {
      for (let next = await commands.next(); next.done !== true; next = await commands.next()) {
        await this.#obey(next.value);
      }
      this.#end(new RelightError("source_unreachable", "Cannot go on: the session has ended"));
    } catch (cause) {
      this.#end(asRelightError(cause));
    }
  }

  /** Resolves when later commands may be looked at; none waits behind a step, a peer or a loader. */
  async #obey(command: Command): Promise<void> {
    switch (command.type) {
      case "seat":
        return;
      case "map":
        this.#later("map", () => this.#map(command.seat, command.occupant.address), command.seat);
        return;
      case "unmap":
        this.#later("unmap", () => this.#unmap(command.seat), command.seat);
        return;
      case "prepare":
        this.#later("prepare", () => this.#prepare(command));
        return;
      case "arm":
        this.#later("arm", () => this.#idle.take(() => this.#arm(command)));
        return;
      case "commit":
        this.#commit(command.number);
        return;
      case "disarm":
        this.#later("disarm", () => this.#idle.take(() => this.#disarm(command.number)));
        return;
      case "mask":
        await this.#mask(command);
        return;
      case "replay":
        this.#tell({ type: "replay", firstFaultyStep: command.firstFaultyStep });
        return;
      case "settled":
        this.#tell({ type: "settled", epoch: command.epoch });
        return;
      case "release":
      case "evicted":
        await this.#quit(command.type === "release", command.ended);
        return;
    }
  }

  /** In the background; what fails is told, and the group judges a rank that does not answer. */
  #later(what: string, act: () => Promise<void>, seat?: Seat): void {
    const turns = seat === undefined ? null : this.#turnsOf(seat.slot);
    const done = turns === null ? act() : turns.take(act);
    done.catch((cause: unknown) => {
      if (this.#ending.signal.aborted) return;
      this.#tell({ type: "failed", what, error: asRelightError(cause) });
    });
  }

  #turnsOf(slot: number): Turns {
    const turns = this.#slots.get(slot) ?? new Turns();
    this.#slots.set(slot, turns);
    return turns;
  }

  async #map(seat: Seat, address: string): Promise<void> {
    const { clock, limits } = this.#options;
    const began = clock.monotonicMs();
    using deadline = startDeadlineOn(clock, {
      what: `mapping slot ${seat.slot}`,
      ms: limits.connectMsMax,
      parent: this.#ending.signal,
    });
    using window = await this.#fetch(address, seat, deadline.signal);
    await this.device.connect(seat.slot, window.handle);
    this.#session.report({ type: "mapped", seat });
    this.#tell({ type: "mapped", seat, ms: clock.monotonicMs() - began });
  }

  /** The peer may know of its seat later than we do. */
  async #fetch(address: string, seat: Seat, signal: AbortSignal): Promise<FetchedWindow> {
    const { clock, windows } = this.#options;
    for (;;) {
      try {
        return await windows.fetch(address, seat, signal);
      } catch (cause) {
        const error = asRelightError(cause);
        if (error.code !== "not_found" && error.code !== "source_unreachable") throw error;
        await clock.sleep(retryMs, signal);
      }
    }
  }

  async #unmap(seat: Seat): Promise<void> {
    await this.#idle.take(() => this.device.disconnect(seat.slot));
    this.#session.report({ type: "unmapped", seat });
    this.#tell({ type: "unmapped", seat });
  }

  async #prepare({ number, experts }: Extract<Command, { type: "prepare" }>): Promise<void> {
    const { clock, loadExperts } = this.#options;
    this.#preparing.abort(
      new RelightError("cancelled", "Cannot load experts: the plan is another"),
    );
    this.#preparing = new AbortController();
    const began = clock.monotonicMs();
    const signal = AbortSignal.any([this.#preparing.signal, this.#ending.signal]);
    await loadExperts(experts, signal);
    this.#session.report({ type: "ready", number });
    this.#tell({ type: "prepared", experts: experts.length, ms: clock.monotonicMs() - began });
  }

  async #arm(command: Extract<Command, { type: "arm" }>): Promise<void> {
    const { number, atStep, on, off } = command;
    await this.#undoGate();
    if (this.#launched >= atStep) {
      this.#session.report({ type: "refused", number, launchedStep: this.#launched });
      return;
    }
    const isJoining = on.some((seat) => isSameSeat(seat, this.seat));
    // A joiner has written nothing yet: what was true when it sat down may have changed since.
    const view = this.#session.view;
    const before = isJoining && view !== null ? membershipOf(view) : this.#membership;
    const next = withChange(before, command, this.nextStep);
    if (isJoining) {
      await this.device.restart(BigInt(atStep - 1));
      this.#firstStep = atStep;
      this.#launched = atStep - 1;
      this.#completed = atStep - 1;
    }
    await this.device.keepSuspects(maskOf(this.#membership.members) & ~maskOf(on));
    await this.#write(next);
    const opened = Promise.withResolvers<void>();
    this.#gate = { number, atStep, before, joined: on, left: off, opened };
    this.#session.report({ type: "armed", number });
  }

  #commit(number: number): void {
    const gate = this.#gate;
    if (gate === null || gate.number !== number) return;
    this.#gate = null;
    const { atStep, joined, left } = gate;
    this.#tell({ type: "flip", atStep, joined, left });
    gate.opened.resolve();
    this.#announceChange();
  }

  async #disarm(number: number): Promise<void> {
    if (this.#gate?.number === number) await this.#undoGate();
  }

  async #undoGate(): Promise<void> {
    const gate = this.#gate;
    if (gate === null) return;
    await this.#write(gate.before);
    this.#gate = null;
    gate.opened.resolve();
  }

  /** The mask at once; owners when no kernel reads them. */
  async #mask(command: Extract<Command, { type: "mask" }>): Promise<void> {
    const { seats, epoch, placement, next } = command;
    const owners = { now: placement, next };
    const masked = withoutDead(this.#membership, seats, owners);
    this.#maskings += 1;
    await this.device.mask(maskOf(masked.members));
    this.#tell({ type: "died", seats, epoch });
    this.#later("mask", () =>
      this.#idle.take(async () => {
        const gate = this.#gate;
        if (gate !== null) {
          this.#gate = {
            ...gate,
            before: withoutDead(gate.before, seats, { now: placement, next: null }),
          };
        }
        await this.#write(withoutDead(this.#membership, seats, owners));
        await this.device.keepSuspects(maskOf(this.#membership.members));
        const firstFaultyStep = this.#firstFaulty;
        this.#firstFaulty = null;
        this.#suspected = 0;
        this.#session.report({ type: "masked", epoch, firstFaultyStep });
      }),
    );
  }

  async #quit(isLeave: boolean, why: string): Promise<void> {
    this.#end(
      new RelightError("ep_evicted", `Cannot go on as a member: ${why}`, { details: { why } }),
    );
    // Nobody but this rank: a kernel that still waits for others ends now.
    await this.device.mask(1 << this.seat.slot);
    await this.#idle.take(async () => {
      await this.device.setMembers([]);
      for (const [slot, turns] of this.#slots) {
        await turns.take(() => this.device.disconnect(slot));
      }
    });
    this.#session.report({ type: "quiesced" });
    this.#tell({ type: "ended", isLeave, why });
  }

  async #write(membership: Membership): Promise<void> {
    const { now, next, from } = membership;
    const table = (placement: Placement) => ownerTable(placement, this.seat.slot);
    await this.device.setOwners({ now: table(now), next: table(next), from: BigInt(from) });
    await this.device.setMembers(membership.members);
    this.#membership = membership;
    this.#announceChange();
  }

  #announceChange(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
  }

  #tellSuspects(mask: number, step: number): void {
    for (const slot of slotsIn(mask & ~this.#suspected)) {
      const member = this.#membership.members.find((one) => one.slot === slot);
      if (member === undefined) continue;
      const seat = { slot, incarnation: member.incarnation };
      this.#session.report({ type: "suspect", seat, step });
    }
    this.#suspected = mask;
  }

  #tellProgress(isUrgent: boolean): void {
    const now = this.#options.clock.monotonicMs();
    if (!isUrgent && now - this.#toldAtMs < this.#options.limits.progressMs) return;
    this.#toldAtMs = now;
    const [launchedStep, completedStep] = [this.#launched, this.#completed];
    this.#session.report({ type: "progress", launchedStep, completedStep });
  }

  #tell(event: GroupEvent): void {
    this.#options.onEvent(event);
  }

  #end(why: RelightError): void {
    this.#ending.abort(why);
    this.#gate?.opened.resolve();
    this.#announceChange();
  }
}
