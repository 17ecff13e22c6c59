// SPDX-License-Identifier: Apache-2.0
// Seals a checkpoint: large files are hashed on several threads, and only those that no earlier look has
// hashed; what comes out is a whole checkpoint or an error. A `Sealer` around the one for caches.

import fs from "node:fs";
import path from "node:path";
import { checkCheckpoint } from "../artifacts/checkpoint-check.ts";
import {
  type DigestRecord,
  readDigestRecord,
  writeDigestRecord,
} from "../artifacts/digest-record.ts";
import type { Cache } from "../artifacts/families.ts";
import { hashedFile } from "../artifacts/hash-file.ts";
import type { HashPool } from "../artifacts/hash-pool.ts";
import { manifestLimits } from "../artifacts/manifest.ts";
import { type FoundFile, findFiles, type Seal, type SealedFile } from "../artifacts/seal.ts";
import type { Sealer } from "../artifacts/sealer.ts";
import { chunkBytes } from "../core/pieces.ts";
import { jsonBytesMax } from "../core/structure.ts";
import { RelightError } from "../errors.ts";
import { readSmall } from "../platform/files.ts";

export interface CheckpointSealerOptions {
  readonly pool: HashPool;
  readonly stateFolder: string;
  /** Bytes read and bytes to read, of files that had to be hashed. */
  readonly onProgress: (done: number, total: number) => void;
}

type SealSettings = Parameters<Sealer["seal"]>[1];

/** Disposing it leaves `inner` and the pool alone. */
export class CheckpointSealer implements Sealer {
  readonly #inner: Sealer;
  readonly #options: CheckpointSealerOptions;
  #known: DigestRecord | null = null;
  /** Looked at whole. */
  #last: Seal | null = null;

  constructor(inner: Sealer, options: CheckpointSealerOptions) {
    this.#inner = inner;
    this.#options = options;
  }

  async seal(cache: Cache, settings: SealSettings, signal: AbortSignal): Promise<Seal | null> {
    const { stateFolder } = this.#options;
    const found = findFiles(cache).flatMap((file) => stampOf(cache.root, file) ?? []);
    if (this.#last !== null && this.#isUnchanged(found)) return this.#last;
    const known = this.#known ?? readDigestRecord(stateFolder, cache.root);
    const hashed = await this.#hash(found, { ...settings, known }, signal);
    // The sealing thread remembers its last seal: only what it has not seen is told.
    const told = this.#known === null ? [...known.values(), ...hashed] : hashed;
    const seal = await this.#inner.seal(cache, { ...settings, known: told }, signal);
    if (seal === null) return null;
    const changing = seal.skipped.find(({ isTransient }) => isTransient);
    if (changing !== undefined)
      throw new RelightError(
        "entry_changed",
        `Cannot seal "${cache.root}" now: "${changing.path}": ${changing.reason}`,
      );
    checkCheckpoint(filesOf(cache.root, seal));
    if (this.#known === null || hashed.length > 0)
      writeDigestRecord(stateFolder, cache.root, seal.files);
    this.#known = new Map(seal.files.map((file) => [file.entry.path, file]));
    this.#last = seal;
    return seal;
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** Every file and no other lies there as it was sealed: a folder of 700 GB is looked at every few seconds. */
  #isUnchanged(found: readonly Unhashed[]): boolean {
    return (
      found.length === this.#known?.size &&
      found.every((file) => isKnown(file, this.#known?.get(file.path)))
    );
  }

  /** Files that have settled and that nobody has hashed as they are. */
  async #hash(
    found: readonly Unhashed[],
    { settledBeforeMs, known }: { settledBeforeMs: number; known: DigestRecord },
    signal: AbortSignal,
  ): Promise<SealedFile[]> {
    const fresh = found.filter((unhashed) => {
      const isSettled = Number(unhashed.mtimeNs / 1_000_000n) <= settledBeforeMs;
      const isLarge = unhashed.size > chunkBytes && unhashed.size <= manifestLimits.fileBytesMax;
      return isSettled && isLarge && !isKnown(unhashed, known.get(unhashed.path));
    });
    const total = fresh.reduce((sum, { size }) => sum + size, 0);
    let done = 0;
    const chunks = await this.#options.pool.hash(
      fresh.map(({ file, size }) => ({ path: file, size })),
      (bytes) => {
        done += bytes;
        this.#options.onProgress(done, total);
      },
      signal,
    );
    return fresh.flatMap((file, at) => {
      const ofFile = chunks[at] ?? null;
      // One that was cut meanwhile is looked at again by whoever seals.
      return ofFile === null ? [] : [sealedFile(file, hashedFile(ofFile))];
    });
  }
}

interface Unhashed {
  readonly path: string;
  /** Absolute, its last name no link. */
  readonly file: string;
  readonly size: number;
  readonly mode: 0o644 | 0o755;
  readonly mtimeNs: bigint;
  readonly inode: bigint;
}

/** Null when it was removed meanwhile. */
function stampOf(root: string, found: FoundFile): Unhashed | null {
  const file = found.realPath ?? path.join(root, found.path);
  const stat = fs.lstatSync(file, { bigint: true, throwIfNoEntry: false });
  if (stat === undefined) return null;
  return {
    path: found.path,
    file,
    size: Number(stat.size),
    mode: (stat.mode & 0o100n) === 0n ? 0o644 : 0o755,
    mtimeNs: stat.mtimeNs,
    inode: stat.ino,
  };
}

function isKnown({ size, mtimeNs, inode }: Unhashed, known: SealedFile | undefined): boolean {
  return known?.diskSize === size && known.mtimeNs === mtimeNs && known.inode === inode;
}

function sealedFile(
  { path: name, size, mode, mtimeNs, inode }: Unhashed,
  hashed: ReturnType<typeof hashedFile>,
): SealedFile {
  const entry = { path: name, mode, size, form: "plain", ...hashed } as const;
  return { entry, diskSize: size, mtimeNs, inode };
}

function filesOf(root: string, seal: Seal): Parameters<typeof checkCheckpoint>[0] {
  const places = new Map(
    seal.files.map(({ entry, realPath }) => [entry.path, realPath ?? path.join(root, entry.path)]),
  );
  const locate = (name: string) => places.get(name) ?? path.join(root, name);
  return {
    root,
    paths: seal.manifest.files.map((file) => file.path),
    locate,
    read: (name) => readSmall(locate(name), jsonBytesMax),
  };
}
