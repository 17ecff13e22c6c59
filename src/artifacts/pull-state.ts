// SPDX-License-Identifier: Apache-2.0
// What a pull knows: which pieces are missing, who has which, what is under way and how each source
// has behaved. pull.ts decides on it; nothing here does.

import type { Piece, PieceSet } from "../core/pieces.ts";
import { KiB, MiB } from "../core/units.ts";
import { assert, type Code } from "../errors.ts";
import { Bits } from "./bits.ts";

export interface PullSettings {
  /** Requests at the same time, in all and to one source. */
  readonly lanesMax: number;
  readonly lanesPerSourceMax: number;
  /** Of one request. Smaller ones towards the end, so that all lanes finish together. */
  readonly batchBytesMax: number;
  readonly batchBytesMin: number;
  readonly batchPiecesMax: number;
  /** A batch is not taken from its source before this age. */
  readonly stealMsMin: number;
  /** How often a source that lacks pieces is asked for what it has, doubling up to the second. */
  readonly haveMsMin: number;
  readonly haveMsMax: number;
  /** First wait after a failure, doubling up to the second. */
  readonly backoffMsMin: number;
  readonly backoffMsMax: number;
  /** Failures in a row, without a piece between them, after which a source is dropped. */
  readonly failuresMax: number;
  /** How long the pull waits for anything to happen while sources are left but none has a missing piece. */
  readonly starvedMsMax: number;
  /** How often the coordinator is asked for more sources while a lane is free, doubling up to the second. */
  readonly searchMsMin: number;
  readonly searchMsMax: number;
  /** Sources kept in use or in reserve; more are ignored. */
  readonly sourcesMax: number;
  /** A source that was lost on the way gets another chance when it is offered again after this time. */
  readonly reviveMsMin: number;
}

export const pullSettings: PullSettings = {
  lanesMax: 4,
  lanesPerSourceMax: 2,
  batchBytesMax: 16 * MiB,
  batchBytesMin: 512 * KiB,
  batchPiecesMax: 1_000,
  stealMsMin: 300,
  haveMsMin: 250,
  haveMsMax: 4_000,
  backoffMsMin: 200,
  backoffMsMax: 5_000,
  failuresMax: 3,
  starvedMsMax: 10_000,
  searchMsMin: 500,
  searchMsMax: 4_000,
  sourcesMax: 32,
  reviveMsMin: 5_000,
};

/** A failure as the ledger keeps it. */
export interface SourceFailure {
  readonly code: Code;
  readonly message: string;
}

export interface Source {
  readonly endpoint: string;
  /** Decides between equal sources, so that a fleet does not ask the same one first. */
  readonly rank: number;
  /** As the coordinator last said. */
  isComplete: boolean;
  /** Null: it has everything. */
  have: Bits | null;
  isHaveAsked: boolean;
  haveDueMs: number;
  haveWaitMs: number;
  lanes: number;
  /** Of one lane, smoothed; null before the first batch. */
  bytesPerMs: number | null;
  blockedUntilMs: number;
  /** In a row, without a piece between them. */
  failuresInRow: number;
  busyInRow: number;
  /** Why it is not used again in this pull. */
  dropped: SourceFailure | null;
  droppedMs: number;
  bytes: number;
  pieces: number;
  batches: number;
  /** Batches taken away because another source is faster. */
  stolen: number;
  readonly failures: Map<Code, number>;
}

export interface Batch {
  readonly id: number;
  readonly endpoint: string;
  readonly startedMs: number;
  /** Not verified yet. */
  readonly pieces: Set<number>;
  bytesLeft: number;
  bytesDone: number;
  isCancelled: boolean;
}

/** Where a pull stands with asking the coordinator for more sources. */
export interface Search {
  isUnderWay: boolean;
  dueMs: number;
  waitMs: number;
  /** No source was left when the last one began, and it brought none. */
  isSpent: boolean;
  /** The last one was not answered. */
  hasFailed: boolean;
}

export type PullOutcome =
  | { readonly type: "complete" }
  | { readonly type: "failed"; readonly code: Code; readonly message: string };

export interface Pull {
  readonly settings: PullSettings;
  /** From 0 to 1, as Math.random. */
  readonly random: () => number;
  /** By piece number, in bytes. */
  readonly lengths: readonly number[];
  /** Neither verified nor under way. */
  readonly missing: Bits;
  missingBytes: number;
  /** Not verified. */
  piecesLeft: number;
  bytesLeft: number;
  /** Pieces of an earlier group are asked for before those of a later one, and these before the rest. */
  order: readonly Bits[];
  readonly sources: Map<string, Source>;
  readonly batches: Map<number, Batch>;
  nextBatch: number;
  /** Null when nobody can be asked for more sources. */
  readonly search: Search | null;
  /** When something last gave hope: a piece, a new source, a source that is busy. */
  hopeMs: number;
  /** When to call `step` with a tick if nothing happens before; null for never. */
  wakeMs: number | null;
  outcome: PullOutcome | null;
}

/** Groups of piece numbers, the most wanted first. */
export type PieceGroups = readonly (readonly number[])[];

/** A pull of the `wanted` pieces, of all when absent. No effects yet: they come with the first source. */
export function createPull(options: {
  pieces: readonly Pick<Piece, "length">[];
  wanted?: readonly number[];
  order?: PieceGroups;
  settings: PullSettings;
  random: () => number;
  nowMs: number;
  canSearch?: boolean;
}): Pull {
  const lengths = options.pieces.map((piece) => piece.length);
  const missing = new Bits(lengths.length);
  let bytes = 0;
  const wanted = options.wanted ?? lengths.keys();
  for (const piece of wanted) {
    missing.add(piece);
    bytes += lengths[piece] ?? 0;
  }
  const count = missing.count();
  return {
    settings: options.settings,
    random: options.random,
    lengths,
    missing,
    missingBytes: bytes,
    piecesLeft: count,
    bytesLeft: bytes,
    order: orderOf(lengths.length, options.order ?? []),
    sources: new Map(),
    batches: new Map(),
    nextBatch: 0,
    search:
      options.canSearch === true
        ? {
            isUnderWay: false,
            dueMs: options.nowMs + options.settings.searchMsMin * options.random(),
            waitMs: options.settings.searchMsMin,
            isSpent: false,
            hasFailed: false,
          }
        : null,
    hopeMs: options.nowMs,
    wakeMs: null,
    outcome: count === 0 ? { type: "complete" } : null,
  };
}

export function createSource(
  pull: Pull,
  { endpoint, isComplete, nowMs }: { endpoint: string; isComplete: boolean; nowMs: number },
): Source {
  return {
    endpoint,
    rank: pull.random(),
    isComplete,
    have: isComplete ? null : new Bits(pull.lengths.length),
    isHaveAsked: false,
    haveDueMs: nowMs,
    haveWaitMs: pull.settings.haveMsMin,
    lanes: 0,
    bytesPerMs: null,
    blockedUntilMs: 0,
    failuresInRow: 0,
    busyInRow: 0,
    dropped: null,
    droppedMs: 0,
    bytes: 0,
    pieces: 0,
    batches: 0,
    stolen: 0,
    failures: new Map(),
  };
}

export function orderOf(size: number, groups: PieceGroups): Bits[] {
  return groups.map((pieces) => {
    const bits = new Bits(size);
    for (const piece of pieces) bits.add(piece);
    return bits;
  });
}

export function bitsOf(set: PieceSet): Bits {
  const bits = new Bits(set.size);
  for (let word = 0; word < bits.words.length; word++) {
    bits.words[word] = Atomics.load(set.words, word);
  }
  return bits;
}

/** Moves a piece from missing into a batch. */
export function assignPiece(pull: Pull, piece: number): void {
  assert(pull.missing.has(piece), "only a missing piece is assigned");
  pull.missing.remove(piece);
  pull.missingBytes -= lengthOf(pull, piece);
}

/** The batch is over: what it did not bring is missing again. */
export function endBatch(pull: Pull, batch: Batch): void {
  pull.batches.delete(batch.id);
  for (const piece of batch.pieces) {
    pull.missing.add(piece);
    pull.missingBytes += lengthOf(pull, piece);
  }
  const source = pull.sources.get(batch.endpoint);
  if (source !== undefined) source.lanes--;
}

export function lengthOf(pull: Pull, piece: number): number {
  return pull.lengths[piece] ?? 0;
}
