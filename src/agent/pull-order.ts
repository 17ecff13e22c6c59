// SPDX-License-Identifier: Apache-2.0
// What a transfer brings first: the small files that say what the others are, and once they are there
// the files that this rank reads (`WholeRules.order`). A cache without such rules comes in any order.

import fs from "node:fs";
import path from "node:path";
import type { Cache } from "../artifacts/families.ts";
import type { SealedManifest } from "../artifacts/manifest.ts";
import type { PieceGroups } from "../artifacts/pull-state.ts";
import { jsonBytesMax } from "../core/structure.ts";
import { readSmall } from "../platform/files.ts";
import type { Staging } from "../transport/transport.ts";

export class PullOrder {
  /** To begin with. */
  readonly first: PieceGroups;
  readonly #cache: Cache;
  readonly #manifest: SealedManifest;
  readonly #into: Staging;
  readonly #early: readonly number[];
  #isTold: boolean;

  /** @param transfer `needed`: the pieces that are to be fetched */
  constructor(
    cache: Cache,
    transfer: { manifest: SealedManifest; into: Staging; needed: readonly number[] },
  ) {
    const { whole } = cache.family;
    this.#cache = cache;
    this.#manifest = transfer.manifest;
    this.#into = transfer.into;
    this.#isTold = whole === undefined;
    const names = transfer.manifest.files.map((file) => file.path);
    const needed = new Set(transfer.needed);
    const early = this.#piecesOf(names.filter((name) => whole?.isEarly(name) === true));
    this.#early = early.filter((piece) => needed.has(piece));
    // When nothing early is missing, what a rank wants is known at once.
    this.first = [this.#early, ...(this.later() ?? [])];
  }

  /** What comes first from now on, told once, as soon as it can be known. */
  later(): PieceGroups | null {
    if (this.#isTold || !this.#early.every((piece) => this.#into.have.has(piece))) return null;
    this.#isTold = true;
    const names = this.#manifest.files.map((file) => file.path);
    const groups = this.#cache.family.whole?.order(names, (name) => this.#read(name)) ?? [];
    return groups.map((group) => this.#piecesOf(group));
  }

  #piecesOf(names: readonly string[]): number[] {
    const wanted = new Set(names);
    return this.#into.pieces.flatMap(({ fileIndex }, piece) =>
      wanted.has(this.#manifest.files[fileIndex]?.path ?? "") ? [piece] : [],
    );
  }

  #read(name: string): Buffer | null {
    const staged = path.join(this.#into.root, name);
    const there = path.join(this.#cache.root, name);
    return readSmall(fs.existsSync(staged) ? staged : there, jsonBytesMax);
  }
}
