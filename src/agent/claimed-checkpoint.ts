// SPDX-License-Identifier: Apache-2.0
// A checkpoint's folder under its lock: what `claimed-cache.ts` does, and what a checkpoint needs beside
// it. A file that is there counts only if it has the right bytes; a transfer that was cut off is resumed;
// what gets its final name is on the disk; and what is known of it is kept, so that nothing is hashed twice.

import fs from "node:fs";
import path from "node:path";
import { checkCheckpoint } from "../artifacts/checkpoint-check.ts";
import {
  type DigestRecord,
  readDigestRecord,
  writeDigestRecord,
} from "../artifacts/digest-record.ts";
import { hashedFile } from "../artifacts/hash-file.ts";
import type { HashPool } from "../artifacts/hash-pool.ts";
import { createStaging, removeStagings, type Staging } from "../artifacts/install.ts";
import { codeIn } from "../artifacts/kinds/checkpoint.ts";
import { listPieces, type ManifestFile, type SealedManifest } from "../artifacts/manifest.ts";
import type { Receipt } from "../artifacts/receipt.ts";
import type { SealedFile } from "../artifacts/seal.ts";
import { chunkBytes, PieceSet } from "../core/pieces.ts";
import { jsonBytesMax } from "../core/structure.ts";
import { formatBytes } from "../core/units.ts";
import { type Code, RelightError } from "../errors.ts";
import { readSmall } from "../platform/files.ts";
import { fromNodeError } from "../platform/node-errors.ts";
import type { Refusal } from "../trust/decide.ts";
import {
  type ClaimCache,
  type ClaimedCache,
  claimCache,
  type StagedTree,
} from "./claimed-cache.ts";

export interface CheckpointClaimOptions {
  readonly pool: HashPool;
  readonly stateFolder: string;
  /** Bytes read and bytes to read, of files whose digests had to be found out. */
  readonly onProgress: (done: number, total: number) => void;
}

/** What takes an installed checkpoint back: an author's word against it, and not that a statement ran out. */
const fatal: readonly Code[] = ["artifact_revoked", "signer_revoked"];
/** Whether a refusal of today takes a checkpoint back that was allowed when it was installed; code always is. */
export function takesBack(refusal: Refusal | null, { files }: Receipt): boolean {
  if (refusal === null) return false;
  return fatal.includes(refusal.code) || files.some(({ path: name }) => codeIn(name) !== null);
}

/** What is wrong with the bytes themselves; after anything else they are worth keeping. */
const spoilt: readonly Code[] = ["structure_invalid", "path_unsafe", "manifest_invalid"];

export function claimCheckpoint(options: CheckpointClaimOptions): ClaimCache {
  return async (cache, asked) => {
    const recheck: typeof asked.recheck = (receipt) => {
      const refusal = asked.recheck(receipt);
      return takesBack(refusal, receipt) ? refusal : null;
    };
    const claimed = await claimCache(cache, { ...asked, recheck });
    return new ClaimedCheckpoint(fs.realpathSync(cache.root), claimed, options);
  };
}

class ClaimedCheckpoint implements ClaimedCache {
  readonly #root: string;
  readonly #claimed: ClaimedCache;
  readonly #options: CheckpointClaimOptions;
  #known: DigestRecord;

  constructor(root: string, claimed: ClaimedCache, options: CheckpointClaimOptions) {
    this.#root = root;
    this.#claimed = claimed;
    this.#options = options;
    this.#known = readDigestRecord(options.stateFolder, root);
  }

  /** Whoever asks for a checkpoint asks on purpose: what failed a moment ago is tried again. */
  readMarker(): null {
    return null;
  }
  writeMarker(): void {}
  removeMarker(): void {}

  /** @throws RelightError `target_obstructed` when a file of another content stands under a name. */
  async missing(manifest: SealedManifest, signal: AbortSignal): Promise<readonly ManifestFile[]> {
    const missing = await this.#claimed.missing(manifest, signal);
    const absent = new Set(missing);
    const there = manifest.files.filter((file) => !absent.has(file));
    this.#learn(await this.#prove(there, signal));
    return missing;
  }

  async stage(
    manifest: SealedManifest,
    files: readonly ManifestFile[],
    signal: AbortSignal,
  ): Promise<StagedTree> {
    const staging = createStaging(this.#root, files, manifest.artifactId.slice(0, 16));
    removeStagings(this.#root, staging);
    const verified = await this.#resume(staging, { manifest, files }, signal);
    this.#requireRoom(manifest, { files, verified });
    return { ...staging, verified };
  }

  unstage(staging: Staging, why: RelightError): void {
    if (spoilt.includes(why.code)) this.#claimed.unstage(staging, why);
  }

  async install(
    order: Parameters<ClaimedCache["install"]>[0],
  ): ReturnType<ClaimedCache["install"]> {
    const { manifest, staging, files } = order;
    const staged = new Set(files.map((file) => file.path));
    const locate = (name: string) =>
      staged.has(name)
        ? path.join(staging.tree, name)
        : fs.realpathSync(path.join(this.#root, name));
    checkCheckpoint({
      root: this.#root,
      paths: manifest.files.map((file) => file.path),
      locate,
      read: (name) => readSmall(locate(name), jsonBytesMax),
    });
    // Before the rename: a file that lost its bytes to a power cut would have its name, size and time.
    await Promise.all(files.map((file) => syncFile(path.join(staging.tree, file.path))));
    const installed = await this.#claimed.install(order);
    this.#remember(manifest, new Set(installed.receipt.files.map((file) => file.path)));
    return installed;
  }

  offered(
    manifest: SealedManifest,
    installed: ReadonlySet<string>,
  ): ReturnType<ClaimedCache["offered"]> {
    return this.#claimed.offered(manifest, installed);
  }

  [Symbol.dispose](): void {
    this.#claimed[Symbol.dispose]();
  }

  /** What is known of files that are there, hashed where nobody knows. */
  async #prove(files: readonly ManifestFile[], signal: AbortSignal): Promise<SealedFile[]> {
    const found = files.map((entry) => ({ entry, ...this.#stamp(entry) }));
    const unknown = found.filter(({ entry, stamp }) => !isSame(this.#known.get(entry.path), stamp));
    const chunks = await this.#hash(
      unknown.map(({ file, entry }) => ({ path: file, size: entry.size })),
      signal,
    );
    const digests = new Map(unknown.map(({ entry }, at) => [entry, chunks[at] ?? null]));
    return found.map(({ entry, stamp }) => {
      const ofFile = digests.get(entry);
      const digest =
        ofFile === undefined
          ? this.#known.get(entry.path)?.entry.digest
          : ofFile === null
            ? null
            : hashedFile(ofFile).digest;
      if (digest !== entry.digest) throw this.#obstructed(entry.path, "other bytes");
      return { entry, ...stamp };
    });
  }

  /** @throws RelightError `target_obstructed` for what cannot be the file. */
  #stamp(entry: ManifestFile): { file: string; stamp: Omit<SealedFile, "entry"> } {
    const full = path.join(this.#root, entry.path);
    const stat = fs.statSync(full, { bigint: true, throwIfNoEntry: false });
    if (!stat?.isFile()) throw this.#obstructed(entry.path, "no file");
    if (Number(stat.size) !== entry.size)
      throw this.#obstructed(entry.path, `${stat.size} bytes instead of ${entry.size}`);
    const stamp = { diskSize: entry.size, mtimeNs: stat.mtimeNs, inode: stat.ino };
    return { file: fs.realpathSync(full), stamp };
  }

  #obstructed(name: string, what: string): RelightError {
    return new RelightError(
      "target_obstructed",
      `Cannot install into "${this.#root}": its own "${name}" has ${what}`,
    );
  }

  /** The pieces that an attempt before left in staging, each looked at again. */
  async #resume(
    staging: Staging,
    { manifest, files }: { manifest: SealedManifest; files: readonly ManifestFile[] },
    signal: AbortSignal,
  ): Promise<PieceSet> {
    const left = files.flatMap((entry) => {
      const file = path.join(staging.tree, entry.path);
      const stat = fs.lstatSync(file, { throwIfNoEntry: false });
      if (stat === undefined) return [];
      if (stat.isFile() && stat.size <= entry.size) return [{ entry, path: file, size: stat.size }];
      fs.rmSync(file, { recursive: true });
      return [];
    });
    const chunks = await this.#hash(left, signal);
    const byEntry = new Map(left.map(({ entry }, at) => [entry, chunks[at] ?? []]));
    const pieces = listPieces(manifest);
    const verified = new PieceSet(pieces.length);
    for (const [piece, { fileIndex, offset, digest }] of pieces.entries()) {
      const entry = manifest.files[fileIndex];
      const ofFile = entry === undefined ? undefined : byEntry.get(entry);
      if (ofFile?.[offset / chunkBytes] === digest) verified.add(piece);
    }
    return verified;
  }

  /** @throws RelightError `disk_full` before minutes are spent on what has no room. */
  #requireRoom(
    manifest: SealedManifest,
    { files, verified }: { files: readonly ManifestFile[]; verified: PieceSet },
  ): void {
    const wanted = new Set(files);
    const needed = listPieces(manifest).reduce((sum, { fileIndex, length }, piece) => {
      const file = manifest.files[fileIndex];
      return file !== undefined && wanted.has(file) && !verified.has(piece) ? sum + length : sum;
    }, 0);
    const { bavail, bsize } = fs.statfsSync(this.#root);
    const free = bavail * bsize;
    if (needed <= free) return;
    throw new RelightError(
      "disk_full",
      `Cannot stage ${formatBytes(needed)} in "${this.#root}": ${formatBytes(free)} are free`,
    );
  }

  async #hash(
    files: readonly { readonly path: string; readonly size: number }[],
    signal: AbortSignal,
  ): ReturnType<HashPool["hash"]> {
    const total = files.reduce((sum, { size }) => sum + size, 0);
    let done = 0;
    const onHashed = (bytes: number) => {
      done += bytes;
      this.#options.onProgress(done, total);
    };
    return await this.#options.pool.hash(files, onHashed, signal);
  }

  /** What was installed was verified as it came; whoever seals this folder need not read it again. */
  #remember(manifest: SealedManifest, installed: ReadonlySet<string>): void {
    const fresh = manifest.files
      .filter((file) => installed.has(file.path) && file.form === "plain")
      .map((entry) => ({ entry, ...this.#stamp(entry).stamp }));
    this.#learn(fresh);
    writeDigestRecord(this.#options.stateFolder, this.#root, this.#known.values());
  }

  #learn(files: readonly SealedFile[]): void {
    const learnt = files.map((file) => [file.entry.path, file] as const);
    this.#known = new Map([...this.#known, ...learnt]);
  }
}

function isSame(known: SealedFile | undefined, stamp: Omit<SealedFile, "entry">): boolean {
  return (
    known?.diskSize === stamp.diskSize &&
    known.mtimeNs === stamp.mtimeNs &&
    known.inode === stamp.inode
  );
}

async function syncFile(file: string): Promise<void> {
  try {
    const handle = await fs.promises.open(file, "r");
    try {
      await handle.datasync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw fromNodeError(error, `sync "${file}"`);
  }
}
