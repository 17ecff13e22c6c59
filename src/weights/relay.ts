// SPDX-License-Identifier: Apache-2.0
// A target offers on what it has verified while it still loads, so that many targets take little longer
// than one: each reads from another's memory what that one has just proved.

import type { WeightLayout, WeightManifest } from "./manifest.ts";
import type { Publication, Publications } from "./publications.ts";
import type { EngineMemory } from "./publish.ts";
import type { PullWatcher } from "./pull.ts";

interface Loading {
  readonly owner: object;
  readonly target: WeightLayout;
  readonly memory: EngineMemory;
}

export class Relay implements PullWatcher {
  readonly #publications: Publications;
  readonly #loading: Loading;
  #publication: Publication | null = null;

  constructor(publications: Publications, loading: Loading) {
    this.#publications = publications;
    this.#loading = loading;
  }

  began(manifest: WeightManifest): void {
    const { owner, memory, target } = this.#loading;
    const { coordinate } = target;
    try {
      this.#publication = this.#publications.begin({ owner, memory, coordinate }, (generation) =>
        ownManifest(target, manifest, generation),
      );
    } catch {
      // Another worker of this node offers this part already: readers go there.
      this.#publication = null;
    }
  }

  verified(tensors: readonly number[]): void {
    this.#publication?.growing.add(tensors);
  }

  /** @returns the generation that is offered now; `null` when nothing was begun */
  complete(): number | null {
    if (this.#publication === null) return null;
    this.#publications.complete(this.#publication);
    return this.#publication.leases.generation;
  }

  abandon(): void {
    if (this.#publication !== null) this.#publications.abandon(this.#publication);
    this.#publication = null;
  }
}

/** The target's own places with the digests that were promised, in its order of tensors. */
export function ownManifest(
  target: WeightLayout,
  from: WeightManifest,
  generation: number,
): WeightManifest {
  const byName = new Map(from.tensors.map(({ name }, index) => [name, from.digests[index]]));
  const digests = target.tensors.map(({ name }) => byName.get(name) ?? null);
  return { ...target, generation, digests };
}
