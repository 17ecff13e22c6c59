// SPDX-License-Identifier: Apache-2.0
// Verifies a piece and writes it under its staging name, in that order. For worker threads: the calls
// are synchronous.

import fs from "node:fs";
import path from "node:path";
import { Blake3Hasher } from "@napi-rs/blake-hash";
import type { Hex32 } from "../core/digest.ts";
import { breaksForm, namedForm } from "../core/structure.ts";
import { KiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import { errnoOf, fromNodeError } from "../platform/node-errors.ts";
import type { Finishing } from "./transport.ts";

export interface StagedPiece {
  readonly piece: number;
  /** Absolute path under its staging root. */
  readonly path: string;
  readonly fileBytes: number;
  readonly mode: number;
  readonly offset: number;
  readonly length: number;
  /** Position in the staging's list of files. */
  readonly fileIndex: number;
  readonly digest: Hex32;
}

const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = fs.constants;

/** Below this, handing a part to the hash costs more than the hash. */
const hashBytesMin = 128 * KiB;

/**
 * Takes pieces in, one after the other. Each is hashed as its bytes arrive, while they are still in the
 * processor's cache, and written when the digest is the promised one. One hash object serves all: making
 * one for each small file costs twice what hashing the file does (bench/artifacts.ts).
 */
export class PieceIntake {
  readonly #hasher = new Blake3Hasher();
  /** Bits that the process's umask takes away from a file it makes. */
  readonly #umask = process.umask();
  readonly #finishing: Finishing | null;
  #hashed = 0;

  constructor(finishing: Finishing | null = null) {
    this.#finishing = finishing;
  }

  /** From `begin` to its end, `bytes` is the beginning of the next piece, longer each time. */
  arrived(bytes: Buffer, begin = 0): void {
    if (bytes.length - begin - this.#hashed >= hashBytesMin) this.#hash(bytes.subarray(begin));
  }

  /** All of the piece. @throws RelightError `digest_mismatch`, before anything is written, or a `disk_` code. */
  accept(bytes: Buffer, want: StagedPiece): void {
    const got = this.#digest(bytes);
    if (got !== want.digest) {
      throw new RelightError(
        "digest_mismatch",
        `Cannot accept piece ${want.piece}: digest is ${got}, manifest says ${want.digest}`,
        { details: { piece: want.piece } },
      );
    }
    try {
      this.#write(bytes, want);
    } catch (error) {
      throw fromNodeError(error, `write "${want.path}"`);
    }
  }

  #hash(bytes: Buffer): void {
    const isFirst = this.#hashed === 0;
    if (bytes.length > this.#hashed)
      this.#hasher.update(isFirst ? bytes : bytes.subarray(this.#hashed));
    this.#hashed = bytes.length;
  }

  #digest(bytes: Buffer): string {
    this.#hash(bytes);
    const digest = this.#hasher.digest("hex");
    this.#hasher.reset();
    this.#hashed = 0;
    return digest;
  }

  #write(bytes: Buffer, want: StagedPiece): void {
    const handle = openStaged(want);
    try {
      for (let done = 0; done < bytes.length; ) {
        done += fs.writeSync(handle, bytes, done, bytes.length - done, want.offset + done);
      }
      if (want.offset === 0 && (want.mode & this.#umask) !== 0) fs.fchmodSync(handle, want.mode);
      if (want.length === want.fileBytes) this.#finish(handle, bytes, want);
    } finally {
      fs.closeSync(handle);
    }
  }

  /** A file of a wrong form is left as it is: the installer refuses it. */
  #finish(handle: number, bytes: Buffer, want: StagedPiece): void {
    if (this.#finishing === null) return;
    const form = namedForm(want.path);
    if (form !== null && breaksForm(form, bytes, want.fileBytes) !== null) return;
    const { accessMs, modifiedMs, finished } = this.#finishing;
    fs.futimesSync(handle, accessMs / 1_000, modifiedMs / 1_000);
    finished.add(want.fileIndex);
  }
}

function openStaged(want: StagedPiece): number {
  const isWhole = want.length === want.fileBytes;
  const flags = O_WRONLY | O_CREAT | O_NOFOLLOW | (isWhole ? O_TRUNC : 0);
  try {
    return fs.openSync(want.path, flags, want.mode);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
    fs.mkdirSync(path.dirname(want.path), { recursive: true, mode: 0o755 });
    return fs.openSync(want.path, flags, want.mode);
  }
}
