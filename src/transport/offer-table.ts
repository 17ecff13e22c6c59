// SPDX-License-Identifier: Apache-2.0
// An offer in shared memory: columns instead of objects, so that handing an artifact of hundreds of
// thousands of files to every worker thread costs one copy and no pause of the caller's thread.

import type { Hex32 } from "../core/digest.ts";
import { PieceSet } from "../core/pieces.ts";
import type { Offer, OfferedFile } from "./transport.ts";

/** Goes to workers by postMessage; its buffers are shared, not copied. */
export interface PackedFiles {
  /** All paths, separated by NUL, which no path holds. */
  readonly paths: SharedArrayBuffer;
  /** For each file: size, mtime in milliseconds, inode, where its bytes begin. -1 means none. */
  readonly numbers: SharedArrayBuffer;
  /** The contents of the files that are served from memory, one after the other. */
  readonly inline: SharedArrayBuffer;
}

export interface PackedOffer {
  readonly artifactId: Hex32;
  readonly manifest: SharedArrayBuffer;
  readonly statement: SharedArrayBuffer | null;
  readonly files: PackedFiles;
  /** For each piece: file index, offset, length. */
  readonly pieces: SharedArrayBuffer;
  readonly pieceCount: number;
  readonly have: SharedArrayBuffer;
  /** Pieces that turned out to be lost. Shared, so that each worker refuses what one has noticed. */
  readonly lost: SharedArrayBuffer;
}

export interface FileFacts {
  readonly path: string;
  readonly size: number;
  /** Null in staging. A double holds microseconds, which is as fine as a change is told from another. */
  readonly stamp: { readonly mtimeMs: number; readonly inode: number } | null;
  readonly inline: Buffer | null;
}

export interface PieceFacts {
  readonly fileIndex: number;
  readonly offset: number;
  readonly length: number;
}

const columns = 4;

export function packOffer(offer: Offer): PackedOffer {
  const pieces = new Float64Array(new SharedArrayBuffer(offer.pieces.length * 24));
  offer.pieces.forEach(({ fileIndex, offset, length }, piece) => {
    pieces.set([fileIndex, offset, length], piece * 3);
  });
  return {
    artifactId: offer.artifactId,
    manifest: share(offer.manifest),
    statement: offer.statement === undefined ? null : share(offer.statement),
    files: packFiles(offer.files),
    pieces: pieces.buffer,
    pieceCount: offer.pieces.length,
    have: offer.have.words.buffer,
    lost: new PieceSet(offer.pieces.length).words.buffer,
  };
}

export function packFiles(files: readonly OfferedFile[]): PackedFiles {
  const numbers = new Float64Array(new SharedArrayBuffer(files.length * columns * 8));
  const inline: Buffer[] = [];
  let inlineBytes = 0;
  files.forEach((file, index) => {
    const { mtimeNs, inode } = file.stamp ?? { mtimeNs: -1_000_000n, inode: -1n };
    const begins = file.bytes === undefined ? -1 : inlineBytes;
    numbers.set([file.size, nsToMs(mtimeNs), Number(inode), begins], index * columns);
    if (file.bytes !== undefined) inline.push(file.bytes);
    inlineBytes += file.bytes?.length ?? 0;
  });
  const paths = share(Buffer.from(files.map((file) => file.path).join("\0"), "utf8"));
  return { paths, numbers: numbers.buffer, inline: share(Buffer.concat(inline)) };
}

/** The files of a packed offer, read without making an object for each. */
export class FileTable {
  readonly #paths: readonly string[];
  readonly #numbers: Float64Array;
  readonly #inline: Buffer;

  constructor(packed: PackedFiles) {
    this.#paths = Buffer.from(packed.paths).toString("utf8").split("\0");
    this.#numbers = new Float64Array(packed.numbers);
    this.#inline = Buffer.from(packed.inline);
  }

  get count(): number {
    return this.#numbers.length / columns;
  }

  at(index: number): FileFacts {
    const row = index * columns;
    const size = this.#numbers[row] ?? 0;
    const mtimeMs = this.#numbers[row + 1] ?? -1;
    const inode = this.#numbers[row + 2] ?? -1;
    const begins = this.#numbers[row + 3] ?? -1;
    return {
      path: this.#paths[index] ?? "",
      size,
      stamp: inode === -1 ? null : { mtimeMs, inode },
      inline: begins === -1 ? null : this.#inline.subarray(begins, begins + size),
    };
  }
}

export class PieceTable {
  readonly #numbers: Float64Array;

  constructor(packed: PackedOffer) {
    this.#numbers = new Float64Array(packed.pieces);
  }

  at(piece: number): PieceFacts {
    const row = piece * 3;
    return {
      fileIndex: this.#numbers[row] ?? 0,
      offset: this.#numbers[row + 1] ?? 0,
      length: this.#numbers[row + 2] ?? 0,
    };
  }
}

/** As `fs.Stats.mtimeMs` computes it, so that equal times give equal doubles. */
function nsToMs(ns: bigint): number {
  return Number(ns / 1_000_000_000n) * 1_000 + Number(ns % 1_000_000_000n) / 1_000_000;
}

function share(bytes: Buffer): SharedArrayBuffer {
  const shared = new SharedArrayBuffer(bytes.length);
  Buffer.from(shared).set(bytes);
  return shared;
}
