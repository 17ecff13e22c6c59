// SPDX-License-Identifier: Apache-2.0
// What must hold in every history, checked from outside: the production code is not asked. A violation
// is kept with its time; the run goes on, so that one seed shows all it breaks.

import type { Timeline } from "./timeline.ts";

/** A source may be offered this long after it was lost, in milliseconds (issue A). */
const offeredMsMax = 5_000;
const violationsMax = 50;

export interface BootEnd {
  readonly node: string;
  readonly state: "installed" | "present" | "cold";
  readonly code: string | null;
  readonly tookMs: number;
  readonly endedMs: number;
}

export class Checkers {
  readonly violations: string[] = [];
  readonly boots: BootEnd[] = [];
  /** How often each was looked at: a checker that never looks proves nothing. */
  readonly looks = { piece: 0, fetch: 0, install: 0, boot: 0, offer: 0, reader: 0 };
  readonly #timeline: Timeline;
  /** By staging tree: pieces whose bytes were checked against the manifest, and came out right. */
  readonly #verified = new Map<string, Set<number>>();
  readonly #written = new Map<string, Set<number>>();

  constructor(timeline: Timeline) {
    this.#timeline = timeline;
  }

  violate(what: string): void {
    if (this.violations.length < violationsMax) {
      this.violations.push(`${this.#timeline.nowMs.toFixed(1)} ms: ${what}`);
    }
  }

  /** A target asks for pieces; none of them may lie verified in its staging. */
  fetches(tree: string, pieces: readonly number[]): void {
    this.looks.fetch++;
    const verified = this.#verified.get(tree);
    const again = pieces.find((piece) => verified?.has(piece) === true);
    if (again !== undefined)
      this.violate(`piece ${again} of ${tree} is fetched after verification`);
  }

  /** Bytes of a piece were written to staging; `isChecked` when their digest was right. */
  writes(tree: string, piece: number, isChecked: boolean): void {
    this.looks.piece++;
    const written = setOf(this.#written, tree);
    if (written.has(piece)) this.violate(`piece ${piece} of ${tree} is written twice`);
    written.add(piece);
    if (isChecked) setOf(this.#verified, tree).add(piece);
  }

  /** Files get their final names; every piece of theirs must have been verified in this staging. */
  installs(node: string, tree: string, pieces: readonly number[]): void {
    this.looks.install++;
    const verified = this.#verified.get(tree);
    const bad = pieces.filter((piece) => verified?.has(piece) !== true);
    if (bad.length > 0)
      this.violate(`${node} installs ${bad.length} pieces that were not verified`);
    this.forgets(tree);
  }

  /** A staging is gone. */
  forgets(tree: string): void {
    this.#verified.delete(tree);
    this.#written.delete(tree);
  }

  /** Pieces in the staging that has most. */
  writtenMost(): number {
    let most = 0;
    for (const written of this.#written.values()) most = Math.max(most, written.size);
    return most;
  }

  get stagings(): number {
    return this.#written.size;
  }

  serves(node: string, readers: number, readersMax: number): void {
    this.looks.reader++;
    if (readers > readersMax)
      this.violate(`${node} serves ${readers} readers, admits ${readersMax}`);
  }

  /** `lostMs`: since when nobody could be served there; null while all is well. */
  offers(what: { to: string; source: string; lostMs: number | null }): void {
    this.looks.offer++;
    const { to, source, lostMs } = what;
    const overMs = lostMs === null ? 0 : this.#timeline.nowMs - lostMs;
    if (overMs > offeredMsMax) {
      this.violate(`${to} is offered ${source}, lost ${Math.round(overMs)} ms ago`);
    }
  }

  boot(end: BootEnd, budgetMs: number): void {
    this.looks.boot++;
    this.boots.push(end);
    if (end.tookMs > budgetMs) {
      this.violate(`${end.node} was ready after ${Math.round(end.tookMs)} ms, budget ${budgetMs}`);
    }
    if (end.state === "cold" && end.code === null)
      this.violate(`${end.node} is cold without a code`);
    if (end.code === "internal") this.violate(`${end.node} is cold by a defect`);
  }
}

function setOf(map: Map<string, Set<number>>, key: string): Set<number> {
  const known = map.get(key);
  if (known !== undefined) return known;
  const fresh = new Set<number>();
  map.set(key, fresh);
  return fresh;
}
