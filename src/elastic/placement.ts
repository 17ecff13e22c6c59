// SPDX-License-Identifier: Apache-2.0
// Which rank holds which expert, and how often: as even by load as `slack` asks, at the price of as few
// moved experts as that allows. Whatever survivors hold they keep, at the same local index. Pure; the
// same input gives the same plan everywhere.

import { RelightError } from "../errors.ts";
import type { Copy, Placement } from "./view.ts";

export interface PlacementInput {
  readonly expertCount: number;
  /** Copies that one rank holds at most, old and new ones together while it changes. */
  readonly localExpertsMax: number;
  /** Copies beyond one of each expert; as many of them as there is room for. */
  readonly redundantCount: number;
  /** Ranks that take part from now on. */
  readonly slots: readonly number[];
  /** The present owners; those at other slots are lost. */
  readonly before: Placement;
  /** Tokens an expert, in any unit; missing: all alike. */
  readonly load: readonly number[];
}

/** The heaviest rank may carry this much more than the mean before an expert moves for balance alone. */
export const slackDefault = 0.05;

interface Rank {
  readonly slot: number;
  /** Local indices in use before or after. */
  readonly taken: Set<number>;
  readonly experts: Set<number>;
  load: number;
}

/** @throws RelightError `ep_capacity` when the ranks cannot hold each expert once. */
export function place(input: PlacementInput, slack = slackDefault): Placement {
  const { expertCount, localExpertsMax, slots } = input;
  const room = slots.length * localExpertsMax;
  if (room < expertCount) throw noRoom(input);
  const counts = copyCounts(input);
  const load = Array.from({ length: expertCount }, (_, expert) => loadOf(input, expert));
  const work = new Work(
    input,
    load.map((whole, expert) => whole / (counts[expert] ?? 1)),
  );
  for (const [expert, count] of counts.entries()) work.trim(expert, count);
  const missing = counts.flatMap((count, expert) =>
    Array.from({ length: Math.max(0, count - work.countOf(expert)) }, () => expert),
  );
  missing.sort((a, b) => work.shareOf(b) - work.shareOf(a) || a - b);
  // First each expert once: room may be short while old and new copies lie side by side.
  const first = missing.filter(
    (expert, at) => work.countOf(expert) === 0 && missing.indexOf(expert) === at,
  );
  for (const expert of first) if (!work.add(expert)) throw noRoom(input);
  const rest = [...missing];
  for (const expert of first) rest.splice(rest.indexOf(expert), 1);
  for (const expert of rest) work.add(expert);
  work.balance(slack);
  return work.placement();
}

/** Owners after these slots are gone. */
export function withoutSlot(placement: Placement, gone: number): Placement {
  return placement.map((copies) => copies.filter(({ slot }) => slot !== gone));
}

export function lostExperts(placement: Placement): number[] {
  return placement.flatMap((copies, expert) => (copies.length === 0 ? [expert] : []));
}

export function emptyPlacement(expertCount: number): Placement {
  return Array.from({ length: expertCount }, () => []);
}

/** Copies that are at a slot where the expert was not before. */
export function movedCount(before: Placement, after: Placement): number {
  return after.reduce((sum, copies, expert) => {
    const old = before[expert] ?? [];
    return sum + copies.filter(({ slot }) => !old.some((copy) => copy.slot === slot)).length;
  }, 0);
}

/** Tokens that each rank gets when an expert's tokens spread evenly over its copies. */
export function rankLoads(
  placement: Placement,
  load: readonly number[],
  slots: readonly number[],
): number[] {
  return slots.map((slot) =>
    placement.reduce((sum, copies, expert) => {
      const has = copies.some((copy) => copy.slot === slot);
      return has ? sum + (load[expert] ?? 1) / copies.length : sum;
    }, 0),
  );
}

/**
 * The owner table of one rank: where it sends each expert's tokens. A copy of its own comes first; the
 * other ranks spread evenly over the copies, each its own part.
 * @returns `slot << 16 | local` for each expert; 0xffffffff where it is lost.
 */
export function ownersFor(
  placement: Placement,
  from: number,
  slots: readonly number[],
): Uint32Array {
  return Uint32Array.from(placement, (copies, expert) => {
    const copy = copies.find(({ slot }) => slot === from) ?? spread(copies, from, slots, expert);
    return copy === undefined ? noOwner : ((copy.slot << 16) | copy.local) >>> 0;
  });
}

const noOwner = 0xffff_ffff;

function spread(
  copies: readonly Copy[],
  from: number,
  slots: readonly number[],
  expert: number,
): Copy | undefined {
  const others = slots.filter((slot) => !copies.some((copy) => copy.slot === slot));
  const at = Math.max(0, others.indexOf(from));
  return copies[(at + expert) % copies.length];
}

/** One each, then one more for whoever has the most load a copy, as often as there is room. */
function copyCounts(input: PlacementInput): number[] {
  const { expertCount, redundantCount, slots, localExpertsMax } = input;
  const counts = Array.from({ length: expertCount }, () => 1);
  const room = slots.length * localExpertsMax - expertCount;
  for (let spare = Math.min(redundantCount, room); spare > 0; spare--) {
    let best = -1;
    for (const [expert, count] of counts.entries()) {
      if (count >= slots.length) continue;
      if (best === -1 || loadOf(input, expert) / count > loadOf(input, best) / (counts[best] ?? 1))
        best = expert;
    }
    if (best === -1) break;
    counts[best] = (counts[best] ?? 1) + 1;
  }
  return counts;
}

function loadOf({ load }: PlacementInput, expert: number): number {
  const given = load[expert];
  return given === undefined || !(given > 0) ? least : given;
}

/** An expert that nobody asked for lately still has to be somewhere, and should not be there for free. */
const least = 1e-3;

/** Loads are sums of quotients: what differs by less is equal. */
const rounding = 1e-9;

class Work {
  readonly #ranks: readonly Rank[];
  readonly #shares: readonly number[];
  readonly #before: Placement;
  readonly #after: Map<number, Copy>[];
  readonly #localExpertsMax: number;

  constructor(input: PlacementInput, shares: readonly number[]) {
    this.#shares = shares;
    this.#before = input.before;
    this.#localExpertsMax = input.localExpertsMax;
    this.#ranks = [...input.slots]
      .sort((a, b) => a - b)
      .map((slot) => ({ slot, taken: new Set(), experts: new Set(), load: 0 }));
    this.#after = Array.from({ length: input.expertCount }, () => new Map<number, Copy>());
    for (const [expert, copies] of input.before.entries()) {
      for (const copy of copies) this.#keep(expert, copy);
    }
  }

  countOf(expert: number): number {
    return this.#after[expert]?.size ?? 0;
  }

  shareOf(expert: number): number {
    return this.#shares[expert] ?? 0;
  }

  placement(): Placement {
    return this.#after.map((copies) => [...copies.values()].sort((a, b) => a.slot - b.slot));
  }

  /** Drops copies that are too many, from the heaviest ranks. */
  trim(expert: number, count: number): void {
    while (this.countOf(expert) > count) {
      const holders = this.#ranks.filter(({ experts }) => experts.has(expert));
      const heaviest = holders.reduce((a, b) => (b.load > a.load ? b : a));
      this.#drop(expert, heaviest);
    }
  }

  /** One copy more, at the lightest rank that has room. False when there is none. */
  add(expert: number): boolean {
    const fitting = this.#ranks.filter((rank) => this.#fits(expert, rank));
    if (fitting.length === 0) return false;
    this.#put(expert, fitting.reduce(lighter));
    return true;
  }

  /** Moves experts from the heaviest rank to the lightest, while that helps and is needed. */
  balance(slack: number): void {
    const total = this.#ranks.reduce((sum, { load }) => sum + load, 0);
    const allowed = (total / this.#ranks.length) * (1 + slack);
    for (let moves = this.#after.length * 2; moves > 0; moves--) {
      const heavy = this.#ranks.reduce((a, b) => (b.load > a.load ? b : a));
      if (heavy.load <= allowed) return;
      const move = this.#bestMove(heavy);
      if (move === null) return;
      this.#drop(move.expert, heavy);
      this.#put(move.expert, move.to);
    }
  }

  /** The one after which the heavier of the two ranks is lightest. */
  #bestMove(heavy: Rank): { expert: number; to: Rank } | null {
    const lightFirst = [...this.#ranks].sort((a, b) => a.load - b.load || a.slot - b.slot);
    for (const to of lightFirst) {
      const gap = heavy.load - to.load;
      let best: { expert: number; to: Rank; rest: number } | null = null;
      for (const expert of heavy.experts) {
        const share = this.shareOf(expert);
        if (share >= gap * (1 - rounding) || !this.#fits(expert, to)) continue;
        const rest = Math.max(heavy.load - share, to.load + share);
        if (best === null || rest < best.rest || (rest === best.rest && expert < best.expert))
          best = { expert, to, rest };
      }
      if (best !== null) return best;
    }
    return null;
  }

  #fits(expert: number, rank: Rank): boolean {
    if (rank.experts.has(expert)) return false;
    return this.#oldLocal(expert, rank) !== undefined || rank.taken.size < this.#localExpertsMax;
  }

  #oldLocal(expert: number, { slot }: Rank): number | undefined {
    return this.#before[expert]?.find((copy) => copy.slot === slot)?.local;
  }

  #keep(expert: number, copy: Copy): void {
    const rank = this.#ranks.find(({ slot }) => slot === copy.slot);
    if (rank === undefined) return;
    rank.taken.add(copy.local);
    this.#set(expert, rank, copy.local);
  }

  /** Where it was before if it was there, else the lowest index that is free in both tables. */
  #put(expert: number, rank: Rank): void {
    let local = this.#oldLocal(expert, rank) ?? 0;
    if (this.#oldLocal(expert, rank) === undefined) while (rank.taken.has(local)) local++;
    rank.taken.add(local);
    this.#set(expert, rank, local);
  }

  #set(expert: number, rank: Rank, local: number): void {
    rank.experts.add(expert);
    rank.load += this.shareOf(expert);
    this.#after[expert]?.set(rank.slot, { slot: rank.slot, local });
  }

  /** What was there before keeps its index until the flip; what was only planned frees it. */
  #drop(expert: number, rank: Rank): void {
    const local = this.#after[expert]?.get(rank.slot)?.local;
    rank.experts.delete(expert);
    rank.load -= this.shareOf(expert);
    this.#after[expert]?.delete(rank.slot);
    if (this.#oldLocal(expert, rank) === undefined && local !== undefined) rank.taken.delete(local);
  }
}

function lighter(a: Rank, b: Rank): Rank {
  return b.load < a.load ? b : a;
}

function noRoom({ expertCount, localExpertsMax, slots }: PlacementInput): RelightError {
  return new RelightError(
    "ep_capacity",
    `Cannot place ${expertCount} experts: ${slots.length} ranks hold ${localExpertsMax} each, old and new together`,
  );
}
