// SPDX-License-Identifier: Apache-2.0
// The offers as one thread of the server sees them: which pieces can be served, and from where.

import type { Hex32 } from "../core/digest.ts";
import { PieceSet } from "../core/pieces.ts";
import { RelightError } from "../errors.ts";
import type { PumpSource, Segment } from "./http-pump.ts";
import {
  type FileFacts,
  FileTable,
  type PackedFiles,
  type PackedOffer,
  PieceTable,
} from "./offer-table.ts";

export class ServedArtifact implements PumpSource {
  readonly manifest: Buffer;
  readonly pieceCount: number;
  readonly #artifactId: Hex32;
  readonly #statement: Buffer | null;
  readonly #pieces: PieceTable;
  readonly #have: PieceSet;
  readonly #lost: PieceSet;
  readonly #changed = new Set<number>();
  readonly #onChanged: (artifactId: Hex32, fileIndex: number) => void;
  #files: FileTable;

  constructor(packed: PackedOffer, onChanged: (artifactId: Hex32, fileIndex: number) => void) {
    this.#artifactId = packed.artifactId;
    this.manifest = Buffer.from(packed.manifest);
    this.#statement = packed.statement === null ? null : Buffer.from(packed.statement);
    this.pieceCount = packed.pieceCount;
    this.#pieces = new PieceTable(packed);
    this.#have = new PieceSet(packed.pieceCount, packed.have);
    this.#lost = new PieceSet(packed.pieceCount, packed.lost);
    this.#files = new FileTable(packed.files);
    this.#onChanged = onChanged;
  }

  /** The author's envelope. @throws RelightError `not_found` when nobody signed. */
  get statement(): Buffer {
    if (this.#statement !== null) return this.#statement;
    throw new RelightError(
      "not_found",
      `Cannot serve a statement of ${this.#artifactId}: it is offered unsigned`,
    );
  }

  relocate(files: PackedFiles): void {
    this.#files = new FileTable(files);
    // What had moved away is back under its new name.
    this.#changed.clear();
    this.#lost.words.fill(0);
  }

  file(fileIndex: number): FileFacts {
    return this.#files.at(fileIndex);
  }

  /** Refuses the file's pieces from now on, in every thread. */
  lost(fileIndex: number): void {
    if (this.#changed.has(fileIndex)) return;
    this.#changed.add(fileIndex);
    for (const piece of this.#piecesOf(fileIndex)) this.#lost.add(piece);
    // In staging nothing is sealed yet: the file has moved to its final place, or the transfer failed.
    if (this.#files.at(fileIndex).stamp !== null) this.#onChanged(this.#artifactId, fileIndex);
  }

  canServe(piece: number): boolean {
    return this.#have.has(piece) && !this.#lost.has(piece);
  }

  /**
   * What can be served now, as the wire has it. The sets' words are little-endian on every machine that
   * Relight runs on (x64, arm64), so that their bytes are the wire's: a thousand targets may ask.
   */
  haveBytes(): Uint8Array {
    const lost = new Uint8Array(this.#lost.words.buffer);
    const have = new Uint8Array(this.#have.words.buffer).slice(0, Math.ceil(this.pieceCount / 8));
    for (let at = 0; at < have.length; at++) have[at] = (have[at] ?? 0) & ~(lost[at] ?? 0);
    return have;
  }

  pieceSegments(pieces: readonly number[]): Segment[] {
    return pieces.map((piece) => {
      const { fileIndex, offset, length } = this.#pieces.at(piece);
      return { frame: piece, fileIndex, offset, length, isRefused: !this.canServe(piece) };
    });
  }

  /** @throws RelightError `not_found` for an index beyond the list, `source_gone` while it is not here. */
  wholeFile(fileIndex: number): FileFacts {
    if (fileIndex >= this.#files.count) {
      throw new RelightError(
        "not_found",
        `Cannot serve file ${fileIndex}: the artifact has ${this.#files.count}`,
      );
    }
    for (const piece of this.#piecesOf(fileIndex)) {
      if (!this.canServe(piece)) {
        throw new RelightError(
          "source_gone",
          `Cannot serve file ${fileIndex}: it is not or no longer here`,
        );
      }
    }
    return this.#files.at(fileIndex);
  }

  /** Pieces lie in file order, so that a file's are found by bisection. */
  *#piecesOf(fileIndex: number): Generator<number> {
    let low = 0;
    let high = this.pieceCount;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#pieces.at(middle).fileIndex < fileIndex) low = middle + 1;
      else high = middle;
    }
    for (let piece = low; piece < this.pieceCount; piece++) {
      if (this.#pieces.at(piece).fileIndex !== fileIndex) return;
      yield piece;
    }
  }
}
