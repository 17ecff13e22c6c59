// SPDX-License-Identifier: Apache-2.0
// The portable form of a rooted file as it is hashed and served. A small one is kept in memory; a large
// one lies once more on disk, in Relight's own folder of the cache under its digest, because holding
// hundreds of megabytes for as long as a replica serves is worse than the space.

import fs from "node:fs";
import path from "node:path";
import { chunkBytes } from "../core/pieces.ts";
import { listNames, writeWhole } from "../platform/files.ts";
import { type HashedFile, hashBytes } from "./hash-file.ts";
import { ownFolder } from "./paths.ts";
import { type RootedAt, toPortable } from "./rebase.ts";

/** Targets that learnt of an older artifact may still read its files; the rest goes after so long. */
const spooledMsMax = 3_600_000;

/** A portable form on disk, with what tells whether it still is the same. */
export interface Spooled {
  readonly path: string;
  readonly mtimeNs: bigint;
  readonly inode: bigint;
}

export interface PortableFile extends HashedFile {
  /** In bytes. */
  readonly size: number;
  /** One of the two. */
  readonly bytes?: Buffer;
  readonly spooled?: Spooled;
}

/**
 * Null when the file names no root, or its portable form has no room on this disk: it then travels as
 * it is, as useful as it was.
 * @throws RelightError what `toPortable` throws.
 */
export function portableFile(bytes: Buffer, at: RootedAt): PortableFile | null {
  const portable = toPortable(bytes, at);
  if (portable === null) return null;
  const hashed = { size: portable.length, ...hashBytes(portable) };
  if (portable.length <= chunkBytes) return { ...hashed, bytes: portable };
  const spooled = spool(portable, { root: at.root, name: hashed.digest.slice(-64) });
  return spooled === null ? null : { ...hashed, spooled };
}

/** False when somebody removed or replaced it. */
export function isSpooled(spooled: Spooled): boolean {
  const stat = fs.lstatSync(spooled.path, { bigint: true, throwIfNoEntry: false });
  return stat?.mtimeNs === spooled.mtimeNs && stat.ino === spooled.inode;
}

/** Removes what no artifact of the last hour has. */
export function cleanSpool(
  root: string,
  options: { keep: readonly Spooled[]; nowMs: number },
): void {
  const kept = new Set(options.keep.map((spooled) => spooled.path));
  try {
    for (const name of listNames(spoolFolder(root))) {
      const file = path.join(spoolFolder(root), name);
      const { mtimeMs } = fs.lstatSync(file);
      if (!kept.has(file) && mtimeMs < options.nowMs - spooledMsMax) fs.rmSync(file);
    }
  } catch {
    // Another process of the node was faster, or the folder is not ours to tidy: the next seal tries again.
  }
}

function spool(bytes: Buffer, at: { root: string; name: string }): Spooled | null {
  const file = path.join(spoolFolder(at.root), at.name);
  try {
    const before = stampOf(file, bytes.length);
    if (before !== null) return before;
    writeWhole(file, bytes);
    return stampOf(file, bytes.length);
  } catch {
    // A full or read-only disk, or something in our folder's place: the entry travels as it is instead.
    return null;
  }
}

function stampOf(file: string, size: number): Spooled | null {
  const stat = fs.lstatSync(file, { bigint: true, throwIfNoEntry: false });
  if (!stat?.isFile() || stat.size !== BigInt(size)) return null;
  return { path: file, mtimeNs: stat.mtimeNs, inode: stat.ino };
}

function spoolFolder(root: string): string {
  return path.join(root, ownFolder, "portable");
}
