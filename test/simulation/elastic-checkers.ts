// SPDX-License-Identifier: Apache-2.0
// What must hold of a simulated expert group, seen from outside: by the durable records and by what the
// processes really did, never by what the controller believes.

import type { Effective } from "../../src/elastic/controller.ts";
import type { Group } from "../../src/elastic/group.ts";
import { isMember, type Slot } from "../../src/elastic/view.ts";
import { type SimRank, type Step, textOf } from "./elastic-rank.ts";

export class ElasticCheckers {
  readonly violations: string[] = [];
  readonly looks: Record<string, number> = {
    epochs: 0,
    steps: 0,
    reuses: 0,
    safe: 0,
    owners: 0,
    placements: 0,
    operations: 0,
  };
  readonly #ranks: ReadonlyMap<string, SimRank>;
  readonly #epochs = new Map<number, string>();
  /** Good steps, by number. */
  readonly #steps = new Map<number, Step[]>();
  /** Seats that a verdict has ended, by the records. */
  readonly #buried = new Set<string>();
  /** Who sat where. */
  readonly #sat = new Map<string, string>();
  #last: Group | null = null;

  constructor(ranks: ReadonlyMap<string, SimRank>) {
    this.#ranks = ranks;
  }

  violate(text: string): void {
    if (this.violations.length < 20) this.violations.push(text);
  }

  onRecord(group: Group): void {
    const before = this.#last;
    this.#last = group;
    if (before !== null && group.generation <= before.generation)
      this.violate(`generation ${group.generation} came after ${before.generation}`);
    this.#checkEpoch(group, before);
    for (const slot of group.slots) {
      const old = before?.slots[slot.slot];
      if (slot.state === "DEAD" && slot.ended !== "left") this.#buried.add(textOf(slot));
      if (slot.state === "STAGED" && old?.state !== "STAGED") this.#checkReuse(slot);
    }
    this.#checkOwners(group);
  }

  /** One membership for each epoch: those who stay are never other ones under the same number. */
  #checkEpoch(group: Group, before: Group | null): void {
    this.#count("epochs");
    if (before !== null && group.epoch < before.epoch) this.violate("an epoch went back");
    const members = group.slots
      .filter((slot) => isMember(slot) && slot.offAtStep === null)
      .map(textOf)
      .join(" ");
    const known = this.#epochs.get(group.epoch);
    if (known === undefined) this.#epochs.set(group.epoch, members);
    else if (known !== members)
      this.violate(`epoch ${group.epoch} is of (${known}) and of (${members})`);
  }

  /** The one before is gone for certain: dead, or it has let go of everything by itself. */
  #checkReuse(slot: Slot): void {
    this.#count("reuses");
    const previous = this.#sat.get(String(slot.slot));
    const rank = previous === undefined ? undefined : this.#ranks.get(previous);
    if (rank?.isAlive === true && !rank.member.status.isQuiesced)
      this.violate(`slot ${slot.slot} is given away while ${previous} lives`);
    for (const other of this.#ranks.values()) {
      const mapped = other.mapped.get(slot.slot);
      if (other.isAlive && other.seat !== null && mapped !== undefined && !this.#isOut(other))
        this.violate(`slot ${slot.slot} is given away while ${other.name} maps ${mapped}`);
    }
    if (slot.occupant !== null) this.#sat.set(String(slot.slot), slot.occupant.memberId);
  }

  /** Out by the records, whatever it believes itself. */
  #isOut({ name }: SimRank): boolean {
    const slot = this.#last?.slots.find(({ occupant }) => occupant?.memberId === name);
    return slot === undefined || slot.state === "DEAD";
  }

  /** Experts are at members, nowhere else, and no slot holds two experts in one place. */
  #checkOwners({ placement, slots }: Group): void {
    this.#count("placements");
    const places = new Set<string>();
    for (const copies of placement) {
      for (const { slot, local } of copies) {
        const owner = slots[slot];
        if (owner === undefined || !isMember(owner)) this.violate(`slot ${slot} owns an expert`);
        const place = `${slot}:${local}`;
        if (places.has(place)) this.violate(`two experts at ${place}`);
        places.add(place);
      }
    }
  }

  /** Two that met in a good step agree on who took part, but for those whom a verdict ended. */
  onGoodStep(step: Step): void {
    const peers = this.#steps.get(step.step) ?? [];
    for (const peer of peers) {
      this.#count("steps");
      if (!peer.members.includes(textOf(step.seat)) || !step.members.includes(textOf(peer.seat)))
        continue;
      const differing = [
        ...peer.members.filter((one) => !step.members.includes(one)),
        ...step.members.filter((one) => !peer.members.includes(one)),
      ];
      const strange = differing.filter((one) => !this.#buried.has(one) && !this.#isAccused(one));
      if (strange.length > 0) {
        this.violate(
          `step ${step.step}: ${peer.rank} has (${peer.members.join(" ")}), ${step.rank} has (${step.members.join(" ")})`,
        );
      }
    }
    this.#steps.set(step.step, [...peers, step]);
    if (this.#steps.size > 200) this.#steps.delete(Math.min(...this.#steps.keys()));
  }

  #isAccused(seat: string): boolean {
    const slot = this.#last?.slots.find((one) => textOf(one) === seat);
    if (slot?.state === "SUSPECT" || slot?.state === "DEAD") return true;
    return [...this.#ranks.values()].some(({ member }) =>
      member.status.suspects.some((suspicion) => textOf(suspicion.seat) === seat),
    );
  }

  /** Two processes never hold one seat, and nobody uses who is said to be safe to delete. */
  onLook(effective: Effective | null): void {
    const seats = new Map<string, string>();
    for (const rank of this.#ranks.values()) {
      if (!rank.isAlive || rank.seat === null) continue;
      this.#count("owners");
      const other = seats.get(textOf(rank.seat));
      if (other !== undefined)
        this.violate(`${other} and ${rank.name} sit in ${textOf(rank.seat)}`);
      seats.set(textOf(rank.seat), rank.name);
    }
    for (const slot of effective?.safeToDeleteRanks ?? []) this.#checkSafe(slot);
  }

  #checkSafe(slot: number): void {
    this.#count("safe");
    const name = this.#last?.slots[slot]?.occupant?.memberId;
    for (const rank of this.#ranks.values()) {
      if (rank.name === name || !rank.isAlive || rank.seat === null || this.#isOut(rank)) continue;
      if (rank.mapped.has(slot))
        this.violate(`slot ${slot} is called safe to delete, ${rank.name} maps it`);
    }
  }

  count(name: string): void {
    this.#count(name);
  }

  #count(name: string): void {
    this.looks[name] = (this.looks[name] ?? 0) + 1;
  }
}
