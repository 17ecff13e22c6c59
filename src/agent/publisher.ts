// SPDX-License-Identifier: Apache-2.0
// Offers one cache of a running replica: seals it once it has settled, signs, publishes, and from then
// on publishes again whatever the engine compiled since. A later artifact shares entries with the
// earlier ones, so that a target fetches only what is new.

import path from "node:path";
import type { Cache } from "../artifacts/families.ts";
import { listPieces, totalBytes } from "../artifacts/manifest.ts";
import type { Seal, SealedFile } from "../artifacts/seal.ts";
import type { Sealer } from "../artifacts/sealer.ts";
import type { Hex32 } from "../core/digest.ts";
import { PieceSet } from "../core/pieces.ts";
import { asRelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import type { OfferedFile, PieceServer } from "../transport/transport.ts";
import type { Announce, Retract } from "./relay.ts";
import type { ArtifactTrust, Authored, Subject } from "./trust.ts";

/** Targets that learnt of an artifact a moment ago may still be reading it. */
const supersededMax = 2;

export interface Publication {
  readonly artifactId: Hex32;
  readonly files: number;
  readonly bytes: number;
  /** Files that the last publication did not have. */
  readonly added: number;
}

export interface PublisherOptions {
  readonly sealer: Sealer;
  readonly server: PieceServer;
  readonly announce: Announce;
  readonly retract: Retract;
  readonly trust: ArtifactTrust;
  /** What is said of every artifact of this cache. */
  readonly subject: Subject;
  readonly clock: Clock;
  readonly settleMs: number;
}

export class Publisher {
  readonly cache: Cache;
  readonly #options: PublisherOptions;
  /** Newest last. */
  #offered: { artifactId: Hex32; paths: ReadonlySet<string>; renewAtMs: number }[] = [];
  /** What our own policy lets nobody take from us, and under which version: not tried again and again. */
  #refused: { artifactId: Hex32; policyVersion: number | null } | null = null;
  #last: Seal | null = null;
  /** Files of installations that may not be used any more: never again part of what we sign. */
  #excluded: readonly string[] = [];

  constructor(cache: Cache, options: PublisherOptions) {
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
    const excluded = [...this.cache.excluded, ...this.#excluded];
    const cache = { ...this.cache, excluded };
    this.#last = await sealer.seal(cache, { settledBeforeMs: clock.wallMs() - settleMs }, signal);
    return this.#last;
  }

  /**
   * Publishes what `look` saw; null when that is what is published already, or nothing, or what was
   * refused before. Signs again what is published, in time.
   * @throws RelightError why peers under our own policy would refuse it.
   */
  async publish(): Promise<Publication | null> {
    const seal = this.#last;
    const latest = this.#offered.at(-1);
    if (seal === null || this.#isRefused(seal)) return null;
    const isNew = seal.manifest.artifactId !== latest?.artifactId;
    if (!isNew && this.#options.clock.wallMs() < latest.renewAtMs) return null;
    const { renewAtMs } = await this.#offer(seal);
    const paths = new Set(seal.files.map((file) => file.entry.path));
    const { artifactId } = seal.manifest;
    if (!isNew) this.#offered.pop();
    this.#offered.push({ artifactId, paths, renewAtMs });
    if (!isNew) return null;
    await this.#withdrawOldest();
    return {
      artifactId,
      files: seal.files.length,
      bytes: totalBytes(seal.manifest),
      added: [...paths].filter((name) => !latest?.paths.has(name)).length,
    };
  }

  /**
   * Stops offering everything: what was published holds files that may not be used any more, or the
   * policy names us no longer. What is left is published anew by the next round.
   * @param paths of those files; never sealed again
   */
  async withdraw(paths: readonly string[]): Promise<void> {
    const { server, retract } = this.#options;
    this.#excluded = [...new Set([...this.#excluded, ...paths])];
    for (const { artifactId } of this.#offered.splice(0)) {
      retract({ family: this.cache.family, artifactId });
      await server.withdraw(artifactId);
    }
  }

  /** Whether our own policy would still let peers take what is offered. */
  isAllowed(): boolean {
    const { trust, subject } = this.#options;
    try {
      if (this.#last !== null && this.#offered.length > 0)
        trust.author(this.#last.manifest, subject);
      return true;
    } catch {
      // Why is said when the next round tries to publish it.
      return false;
    }
  }

  async #offer({ manifest, files }: Seal): Promise<Authored> {
    const { server, announce } = this.#options;
    const authored = this.#author({ manifest });
    const pieces = listPieces(manifest);
    const have = new PieceSet(pieces.length);
    have.addAll();
    await server.offer({
      artifactId: manifest.artifactId,
      manifest: manifest.bytes,
      statement: authored.statement,
      files: files.map((file) => offered(this.cache.root, file)),
      pieces,
      have,
    });
    await announce({ family: this.cache.family, manifest, isComplete: true });
    return authored;
  }

  #author({ manifest }: Pick<Seal, "manifest">): Authored {
    const { trust, subject } = this.#options;
    try {
      return trust.author(manifest, subject);
    } catch (thrown) {
      const { artifactId } = manifest;
      this.#refused = { artifactId, policyVersion: trust.summary.policyVersion };
      throw asRelightError(thrown);
    }
  }

  #isRefused({ manifest }: Seal): boolean {
    return (
      this.#refused?.artifactId === manifest.artifactId &&
      this.#refused.policyVersion === this.#options.trust.summary.policyVersion
    );
  }

  async #withdrawOldest(): Promise<void> {
    while (this.#offered.length > supersededMax + 1) {
      const oldest = this.#offered.shift();
      if (oldest !== undefined) await this.#options.server.withdraw(oldest.artifactId);
    }
  }
}

function offered(root: string, file: SealedFile): OfferedFile {
  const { portable, spooled, realPath } = file;
  const served = spooled ?? { ...file, path: realPath ?? path.join(root, file.entry.path) };
  return {
    path: served.path,
    size: file.entry.size,
    stamp: { mtimeNs: served.mtimeNs, inode: served.inode },
    ...(portable === undefined ? {} : { bytes: portable }),
  };
}
