// SPDX-License-Identifier: Apache-2.0
// A node's disk as far as warming a cache uses it. What is installed outlives the process; staging and
// the lock do not. Checkers see every installation.

import type { ClaimCache, ClaimedCache } from "../../src/agent/claimed-cache.ts";
import {
  listPieces,
  type ManifestFile,
  type SealedManifest,
} from "../../src/artifacts/manifest.ts";
import type { FailureMarker } from "../../src/artifacts/receipt.ts";
import { PieceSet } from "../../src/core/pieces.ts";
import { RelightError } from "../../src/errors.ts";
import type { OfferedFile } from "../../src/transport/transport.ts";
import type { Checkers } from "./checkers.ts";
import type { Process } from "./timeline.ts";

/** Renaming, chmod and times of one file (artifacts.tree in bench/results, rounded up). */
const installMsPerFile = 0.05;

export class SimDisk {
  readonly node: string;
  readonly #checkers: Checkers;
  readonly installed = new Set<string>();
  isFull = false;
  #marker: FailureMarker | null = null;
  #stagings = new Map<string, Process>();
  #count = 0;

  constructor(node: string, checkers: Checkers) {
    this.node = node;
    this.#checkers = checkers;
  }

  get stagings(): number {
    return this.#stagings.size;
  }

  /** The port of one process of this node. */
  claimBy(process: Process): ClaimCache {
    return async () => {
      this.#recover();
      return this.#claimed(process);
    };
  }

  /** Whole files only: a crash in between is completed from the journal (install.test.ts has that). */
  hasAll(manifest: SealedManifest): boolean {
    return manifest.files.every((file) => this.installed.has(file.path));
  }

  #recover(): void {
    for (const tree of this.#stagings.keys()) this.#checkers.forgets(tree);
    this.#stagings.clear();
  }

  #claimed(process: Process): ClaimedCache {
    return {
      readMarker: (nowMs) =>
        this.#marker !== null && this.#marker.expiresAtMs > nowMs ? this.#marker : null,
      writeMarker: (marker) => {
        this.#marker = marker;
      },
      removeMarker: () => {
        this.#marker = null;
      },
      missing: async ({ files }) => files.filter((file) => !this.installed.has(file.path)),
      stage: async (manifest) => {
        if (this.isFull) throw new RelightError("disk_full", `Cannot stage on "${this.node}"`);
        const tree = `/sim/${this.node}/${this.#count++}`;
        this.#stagings.set(tree, process);
        return { tree, verified: new PieceSet(listPieces(manifest).length) };
      },
      unstage: ({ tree }) => {
        this.#stagings.delete(tree);
        this.#checkers.forgets(tree);
      },
      install: async (order) => {
        const stop = new AbortController().signal;
        await process.clock.sleep(order.files.length * installMsPerFile, stop);
        this.#checkers.installs(this.node, order.staging.tree, piecesOf(order));
        this.#stagings.delete(order.staging.tree);
        for (const file of order.files) this.installed.add(file.path);
        return {
          receipt: {
            format: "relight.receipt.v1",
            artifactId: order.manifest.artifactId,
            family: order.manifest.family,
            installedAtMs: order.nowMs,
            sources: [...order.sources],
            trust: order.trust,
            files: order.files.map(({ path, form, size, digest }) => ({
              path,
              form,
              size,
              digest,
              mtimeMs: order.nowMs,
            })),
          },
          kept: [],
        };
      },
      offered: (manifest, paths) =>
        manifest.files.map((file) => (paths.has(file.path) ? offeredFile(file) : null)),
      [Symbol.dispose]: () => {},
    };
  }
}

export function offeredFile(file: ManifestFile): OfferedFile {
  return { path: `/sim/cache/${file.path}`, size: file.size, stamp: null };
}

function piecesOf(order: { manifest: SealedManifest; files: readonly ManifestFile[] }): number[] {
  const wanted = new Set(order.files.map((file) => file.path));
  return listPieces(order.manifest).flatMap((piece, index) => {
    const file = order.manifest.files[piece.fileIndex];
    return file !== undefined && wanted.has(file.path) ? [index] : [];
  });
}
