// SPDX-License-Identifier: Apache-2.0
// What engines of this node have published, by part of the model, each for as long as whoever published
// it is connected. Lookups fail with a code; events tell the rest of the agent.

import { RelightError } from "../errors.ts";
import { type Coordinate, coordinateKey } from "./coordinate.ts";
import { type LeaseTable, openLeases } from "./leases.ts";
import type { WeightManifest } from "./manifest.ts";
import type { EngineMemory } from "./publish.ts";

export interface Publication {
  /** The session that published it. */
  readonly owner: object;
  readonly memory: EngineMemory;
  manifest: WeightManifest;
  leases: LeaseTable;
  /** Resolves when no change is under way. */
  settled: Promise<void>;
}

export interface PublicationEvents {
  /** Others may read this from now on; said again for each generation. */
  readonly offered: (manifest: WeightManifest) => void;
  /** Nobody may begin to read it: it is being changed, was withdrawn, or its engine is gone. */
  readonly withheld: (coordinate: Coordinate) => void;
}

export class Publications {
  readonly #byKey = new Map<string, Publication>();
  readonly #readersMax: number;
  readonly #events: PublicationEvents;

  constructor(readersMax: number, events: PublicationEvents) {
    this.#readersMax = readersMax;
    this.#events = events;
  }

  list(): [string, Publication][] {
    return [...this.#byKey];
  }

  /** @throws conflict when a worker that is still connected has published the same part. */
  add({ owner, memory, manifest }: Pick<Publication, "owner" | "memory" | "manifest">): {
    readonly key: string;
    readonly generation: number;
  } {
    const key = coordinateKey(manifest.coordinate);
    const present = this.#byKey.get(key);
    if (present !== undefined && present.owner !== owner) {
      throw new RelightError(
        "conflict",
        `Cannot publish "${key}": another worker of this node has published it`,
        { details: { key } },
      );
    }
    // Whoever has the old manifest must not take a lease of the new one for its own.
    const generation = present === undefined ? manifest.generation : present.leases.generation + 1;
    const leases = openLeases(this.#readersMax, generation);
    const added = { owner, memory, manifest: { ...manifest, generation }, leases };
    this.#byKey.set(key, { ...added, settled: Promise.resolve() });
    this.#events.offered(added.manifest);
    return { key, generation };
  }

  /** @throws no_source */
  get(key: string): Publication {
    const found = this.#byKey.get(key);
    if (found !== undefined) return found;
    throw new RelightError("no_source", `Cannot offer "${key}": nothing was published for it here`);
  }

  /** @throws no_source, request_invalid when it is somebody else's. */
  getOwn(key: string, owner: object): Publication {
    const publication = this.get(key);
    if (publication.owner === owner) return publication;
    throw new RelightError(
      "request_invalid",
      `Cannot change "${key}": another worker published it`,
    );
  }

  /** The engine is about to change it. */
  withhold({ manifest }: Publication): void {
    this.#events.withheld(manifest.coordinate);
  }

  /** It has been changed, and this is what it holds now. */
  renew(publication: Publication, manifest: WeightManifest): void {
    publication.manifest = manifest;
    this.#events.offered(manifest);
  }

  removeOf(owner: object): void {
    for (const [key, publication] of this.#byKey) {
      if (publication.owner !== owner) continue;
      this.#byKey.delete(key);
      this.withhold(publication);
    }
  }
}
