// SPDX-License-Identifier: Apache-2.0
// A piece is the unit of transfer and of verification: a whole file of at most one chunk, or one
// chunk of a larger file. Pieces are numbered in manifest order. This file owns their arithmetic:
// tables, bit sets and the range notation of the byte path.

import { RelightError } from "../errors.ts";
import type { Hex32 } from "./digest.ts";
import { MiB } from "./units.ts";

/** Length of every chunk but a file's last. Part of the format: changing it changes every digest. */
export const chunkBytes = 4 * MiB;

export interface Piece {
  /** Position in the manifest's list of files. */
  readonly fileIndex: number;
  /** Where the piece begins in its file, in bytes. */
  readonly offset: number;
  /** In bytes, at most `chunkBytes`; 0 for an empty file. */
  readonly length: number;
  readonly digest: Hex32;
}

/** A set of piece numbers in shared memory, so that worker threads see what the main thread adds. */
export class PieceSet {
  readonly size: number;
  readonly words: Int32Array<SharedArrayBuffer>;

  constructor(size: number, buffer?: SharedArrayBuffer) {
    this.size = size;
    this.words = new Int32Array(buffer ?? new SharedArrayBuffer(4 * Math.ceil(size / 32)));
  }

  has(piece: number): boolean {
    return (Atomics.load(this.words, piece >>> 5) & (1 << (piece & 31))) !== 0;
  }

  add(piece: number): void {
    Atomics.or(this.words, piece >>> 5, 1 << (piece & 31));
  }

  remove(piece: number): void {
    Atomics.and(this.words, piece >>> 5, ~(1 << (piece & 31)));
  }

  addAll(): void {
    for (let piece = 0; piece < this.size; piece++) this.add(piece);
  }

  count(): number {
    let count = 0;
    for (let piece = 0; piece < this.size; piece++) if (this.has(piece)) count++;
    return count;
  }

  /** Piece i is bit i%8 of byte i/8, the same on the wire. */
  toBytes(): Uint8Array {
    const bytes = new Uint8Array(Math.ceil(this.size / 8));
    for (let piece = 0; piece < this.size; piece++) {
      const at = piece >>> 3;
      if (this.has(piece)) bytes[at] = (bytes[at] ?? 0) | (1 << (piece & 7));
    }
    return bytes;
  }

  /** @throws RelightError `source_protocol` when the length does not fit `size`. */
  static fromBytes(size: number, bytes: Uint8Array): PieceSet {
    if (bytes.length !== Math.ceil(size / 8)) {
      throw new RelightError(
        "source_protocol",
        `Cannot read a piece set: got ${bytes.length} bytes, wanted ${Math.ceil(size / 8)}`,
      );
    }
    const set = new PieceSet(size);
    for (let piece = 0; piece < size; piece++) {
      if (((bytes[piece >>> 3] ?? 0) & (1 << (piece & 7))) !== 0) set.add(piece);
    }
    return set;
  }
}

/** "0-4,7,9-12" for an ascending list. */
export function formatRanges(pieces: readonly number[]): string {
  const ranges: string[] = [];
  for (let at = 0; at < pieces.length; ) {
    const first = pieces[at] ?? 0;
    let last = first;
    while (pieces[at + 1] === last + 1) {
      last++;
      at++;
    }
    ranges.push(first === last ? `${first}` : `${first}-${last}`);
    at++;
  }
  return ranges.join(",");
}

/**
 * The ascending list that "0-4,7" stands for.
 * @throws RelightError `request_invalid` for bad syntax, descending or out-of-range numbers, or more
 * than `countMax` pieces.
 */
export function parseRanges(text: string, limits: { size: number; countMax: number }): number[] {
  const pieces: number[] = [];
  let previous = -1;
  for (const part of text.split(",")) {
    const match = /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(part);
    const first = Number(match?.[1] ?? Number.NaN);
    const last = Number(match?.[2] ?? match?.[1] ?? Number.NaN);
    if (!(first > previous && last >= first && last < limits.size)) {
      throw new RelightError(
        "request_invalid",
        `Cannot read piece range "${part.slice(0, 40)}": want ascending numbers below ${limits.size}`,
      );
    }
    if (pieces.length + (last - first + 1) > limits.countMax) {
      throw new RelightError(
        "request_invalid",
        `Cannot give so many pieces at once: want at most ${limits.countMax}`,
      );
    }
    for (let piece = first; piece <= last; piece++) pieces.push(piece);
    previous = last;
  }
  return pieces;
}
