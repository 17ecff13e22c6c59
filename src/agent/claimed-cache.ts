// SPDX-License-Identifier: Apache-2.0
// One cache on this node's disk, held under its node lock: what warming does to a disk, as a port, so
// that the simulator can put its own disk in its place. Decides nothing; warm.ts does.

import fs from "node:fs";
import path from "node:path";
import type { Cache } from "../artifacts/families.ts";
import {
  createStaging,
  type Installed,
  installStaged,
  missingFiles,
  openRoot,
  recoverRoot,
  removeStaging,
  type Staging,
} from "../artifacts/install.ts";
import { listPieces, type ManifestFile, type SealedManifest } from "../artifacts/manifest.ts";
import { portableFile } from "../artifacts/portable-file.ts";
import {
  type FailureMarker,
  ownPaths,
  type Receipt,
  readMarker,
  readReceipts,
  removeMarker,
  writeMarker,
  writeStatement,
} from "../artifacts/receipt.ts";
import { uninstall } from "../artifacts/uninstall.ts";
import { PieceSet } from "../core/pieces.ts";
import type { RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import { claimNodeLock } from "../platform/node-lock.ts";
import type { Finishing, OfferedFile } from "../transport/transport.ts";
import type { Refusal } from "../trust/decide.ts";
import type { TrustReceipt } from "../trust/receipt.ts";

/** Disposing releases the lock. Every method throws RelightError with what the disk answered. */
export interface ClaimedCache extends Disposable {
  /** What a recent failure left, so that it is not repeated by every process of the node. */
  readMarker(nowMs: number): FailureMarker | null;
  writeMarker(marker: FailureMarker): void;
  removeMarker(): void;
  /** Files of the manifest that are not there yet. */
  missing(manifest: SealedManifest, signal: AbortSignal): Promise<readonly ManifestFile[]>;
  /** A place for `files` of the manifest, with what an earlier attempt left there and is what it should be. */
  stage(
    manifest: SealedManifest,
    files: readonly ManifestFile[],
    signal: AbortSignal,
  ): Promise<StagedTree>;
  /** The transfer or the installation failed. */
  unstage(staging: Staging, why: RelightError): void;
  /** Gives what was staged and verified its final names. */
  install(order: {
    staging: Staging;
    manifest: SealedManifest;
    files: readonly ManifestFile[];
    sources: readonly string[];
    trust: TrustReceipt | null;
    /** The author's envelope, kept for others; undefined where nobody was asked to sign. */
    statement: Buffer | undefined;
    /** What the fetcher of the files was given. */
    finishing: Finishing;
    nowMs: number;
  }): Promise<Installed>;
  /** What of the manifest lies under its final name as it was installed, in manifest order. */
  offered(
    manifest: SealedManifest,
    installed: ReadonlySet<string>,
  ): readonly (OfferedFile | null)[];
}

export interface StagedTree extends Staging {
  /** Pieces of the manifest that need not be fetched. */
  readonly verified: PieceSet;
}

/** An installation of an earlier day that may not be used any more, and was taken back. */
export interface Undone {
  readonly receipt: Receipt;
  readonly refusal: Refusal;
  readonly files: number;
}

/**
 * Waits for the cache's lock, takes back every installation that `recheck` refuses, and cleans up what
 * a crash left behind.
 * @throws RelightError `lock_timeout`, `target_obstructed`, or what the disk answered.
 */
export type ClaimCache = (
  cache: Cache,
  options: {
    clock: Clock;
    signal: AbortSignal;
    recheck: (receipt: Receipt) => Refusal | null;
    onUndone: (undone: Undone) => void;
  },
) => Promise<ClaimedCache>;

/** On the real disk. */
export const claimCache: ClaimCache = async (cache, options) => {
  const root = openRoot(cache.root);
  const lock = await claimNodeLock(ownPaths(root).lock, options);
  try {
    recoverRoot(root, (receipt) => options.recheck(receipt) === null, isResumable(cache));
    for (const receipt of readReceipts(root, () => {})) {
      const refusal = options.recheck(receipt);
      if (refusal !== null) options.onUndone({ receipt, refusal, files: uninstall(root, receipt) });
    }
  } catch (error) {
    lock[Symbol.dispose]();
    throw error;
  }
  return {
    readMarker: (nowMs) => readMarker(root, nowMs),
    writeMarker: (marker) => writeMarker(root, marker),
    removeMarker: () => removeMarker(root),
    missing: async (manifest) => missingFiles(root, manifest),
    stage: async (manifest, files) => ({
      ...createStaging(root, files),
      verified: new PieceSet(listPieces(manifest).length),
    }),
    unstage: removeStaging,
    install: async ({ statement, ...order }) => {
      const installed = installStaged({ root, ...order });
      if (statement !== undefined) writeStatement(root, order.manifest.artifactId, statement);
      return installed;
    },
    offered: ({ files }, installed) =>
      files.map((file) => (installed.has(file.path) ? installedFile(root, file) : null)),
    [Symbol.dispose]: () => lock[Symbol.dispose](),
  };
};

/** A JIT cache is fetched again in a second; for a checkpoint that is minutes. */
function isResumable({ family }: Cache): boolean {
  return family.whole !== undefined;
}

/** Null when the file is not there as it was installed: it is then not offered. */
function installedFile(root: string, file: ManifestFile): OfferedFile | null {
  const full = path.join(root, file.path);
  const stat = fs.lstatSync(full, { bigint: true, throwIfNoEntry: false });
  if (!stat?.isFile()) return null;
  const offered = {
    path: full,
    size: file.size,
    stamp: { mtimeNs: stat.mtimeNs, inode: stat.ino },
  };
  if (file.form === "plain") return offered;
  const portable = portableFile(fs.readFileSync(full), { root, path: file.path });
  if (portable?.digest !== file.digest) return null;
  const { bytes, spooled } = portable;
  if (bytes !== undefined) return { ...offered, bytes };
  return spooled ? { path: spooled.path, size: file.size, stamp: spooled } : null;
}
