// SPDX-License-Identifier: Apache-2.0
// Offers one cache of a running replica: seals it once it has settled, publishes, and from then on
// publishes again whatever the engine compiled since. A later artifact shares entries with the earlier
// ones, so that a target fetches only what is new.

import path from "node:path";
import type { Cache } from "../artifacts/families.ts";
import { listPieces, totalBytes } from "../artifacts/manifest.ts";
import type { Seal, SealedFile } from "../artifacts/seal.ts";
import type { Sealer } from "../artifacts/sealer.ts";
import type { Hex32 } from "../core/digest.ts";
import { PieceSet } from "../core/pieces.ts";
import type { Clock } from "../platform/clock.ts";
import type { OfferedFile, PieceServer } from "../transport/transport.ts";
import type { Announce } from "./relay.ts";

/** Targets that learnt of an artifact a moment ago may still be reading it. */
const supersededMax = 2;

export interface Publication {
  readonly artifactId: Hex32;
  readonly files: number;
  readonly bytes: number;
  /** Files that the last publication did not have. */
  readonly added: number;
}

export class Publisher {
  readonly cache: Cache;
  readonly #options: {
    sealer: Sealer;
    server: PieceServer;
    announce: Announce;
    clock: Clock;
    settleMs: number;
  };
  /** Newest last. */
  #offered: { artifactId: Hex32; paths: ReadonlySet<string> }[] = [];
  #last: Seal | null = null;

  constructor(
    cache: Cache,
    options: {
      sealer: Sealer;
      server: PieceServer;
      announce: Announce;
      clock: Clock;
      settleMs: number;
    },
  ) {
    this.cache = cache;
    this.#options = options;
  }

  /** Paths in the last seal, for counting what was compiled. */
  get files(): readonly string[] {
    return this.#last?.files.map((file) => file.entry.path) ?? [];
  }

  /** True when something was too fresh to be sealed the last time. */
  get isSettling(): boolean {
    return this.#last?.skipped.some((skipped) => skipped.isTransient) ?? true;
  }

  /** Seals and looks, without publishing. */
  async look(signal: AbortSignal): Promise<Seal | null> {
    const { sealer, clock, settleMs } = this.#options;
    this.#last = await sealer.seal(this.cache, clock.wallMs() - settleMs, signal);
    return this.#last;
  }

  /** Publishes what `look` saw; null when that is what is published already, or nothing. */
  async publish(): Promise<Publication | null> {
    const seal = this.#last;
    const latest = this.#offered.at(-1);
    if (seal === null || seal.manifest.artifactId === latest?.artifactId) return null;
    const { manifest, files } = seal;
    const pieces = listPieces(manifest);
    const have = new PieceSet(pieces.length);
    have.addAll();
    const { server, announce } = this.#options;
    await server.offer({
      artifactId: manifest.artifactId,
      manifest: manifest.bytes,
      files: files.map((file) => offered(this.cache.root, file)),
      pieces,
      have,
    });
    await announce({ family: this.cache.family, manifest, isComplete: true });
    const paths = new Set(files.map((file) => file.entry.path));
    const added = [...paths].filter((name) => !latest?.paths.has(name)).length;
    this.#offered.push({ artifactId: manifest.artifactId, paths });
    while (this.#offered.length > supersededMax + 1) {
      const oldest = this.#offered.shift();
      if (oldest !== undefined) await server.withdraw(oldest.artifactId);
    }
    return {
      artifactId: manifest.artifactId,
      files: files.length,
      bytes: totalBytes(manifest),
      added,
    };
  }

  /** Tells the coordinator again: it may have lost its memory, or us. */
  async announceAgain(): Promise<void> {
    const latest = this.#offered.at(-1);
    if (this.#last !== null && this.#last.manifest.artifactId === latest?.artifactId) {
      await this.#options.announce({
        family: this.cache.family,
        manifest: this.#last.manifest,
        isComplete: true,
      });
    }
  }
}

function offered(root: string, file: SealedFile): OfferedFile {
  const { portable, spooled } = file;
  const served = spooled ?? { ...file, path: path.join(root, file.entry.path) };
  return {
    path: served.path,
    size: file.entry.size,
    stamp: { mtimeNs: served.mtimeNs, inode: served.inode },
    ...(portable === undefined ? {} : { bytes: portable }),
  };
}
