// SPDX-License-Identifier: Apache-2.0
// Verifies a piece and writes it under its staging name, in that order. For worker threads: the calls
// are synchronous.

import fs from "node:fs";
import path from "node:path";
import { blake3Hex, type Hex32 } from "../core/digest.ts";
import { RelightError } from "../errors.ts";
import { errnoOf, fromNodeError } from "../platform/node-errors.ts";

export interface StagedPiece {
  readonly piece: number;
  /** Absolute path under its staging root. */
  readonly path: string;
  readonly fileBytes: number;
  readonly mode: number;
  readonly offset: number;
  readonly length: number;
  readonly digest: Hex32;
}

const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = fs.constants;

/** @throws RelightError `digest_mismatch`, before anything is written, or a `disk_` code. */
export function acceptPiece(bytes: Buffer, want: StagedPiece): void {
  const got = blake3Hex(bytes);
  if (got !== want.digest) {
    throw new RelightError(
      "digest_mismatch",
      `Cannot accept piece ${want.piece}: digest is ${got}, manifest says ${want.digest}`,
      { details: { piece: want.piece } },
    );
  }
  try {
    writePiece(bytes, want);
  } catch (error) {
    throw fromNodeError(error, `write "${want.path}"`);
  }
}

function writePiece(bytes: Buffer, want: StagedPiece): void {
  const handle = openStaged(want);
  try {
    for (let done = 0; done < bytes.length; ) {
      done += fs.writeSync(handle, bytes, done, bytes.length - done, want.offset + done);
    }
    // The process's umask may have taken bits away that the manifest names.
    if (want.offset === 0 && (want.mode & umask()) !== 0) fs.fchmodSync(handle, want.mode);
  } finally {
    fs.closeSync(handle);
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

function umask(): number {
  return process.umask();
}
