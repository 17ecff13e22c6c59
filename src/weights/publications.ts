// SPDX-License-Identifier: Apache-2.0
// What engines of this node have published, by part of the model, each for as long as whoever published
// it is connected. Lookups fail with a code; events tell the rest of the agent.

import { RelightError } from "../errors.ts";
import { type Coordinate, coordinateKey } from "./coordinate.ts";
import { Growing } from "./growing.ts";
import { type LeaseTable, openLeases } from "./leases.ts";
import type { WeightManifest } from "./manifest.ts";
import type { EngineMemory } from "./publish.ts";
import type { PublishedBytes } from "./published-bytes.ts";

export interface Publication {
  readonly key: string;
  /** The session that published it. */
  readonly owner: object;
  readonly memory: EngineMemory;
  manifest: WeightManifest;
  leases: LeaseTable;
  /** Resolves when no change is under way. */
  settled: Promise<void>;
  /** What is there already, while the target that publishes it is still loading. */
  readonly growing: Growing;
  /** Where readers can be read themselves, by lease. */
  readonly readers: Map<number, string>;
  /** What may be given out over a network; made at first use. */
  bytes: PublishedBytes | null;
}

type Published = Pick<Publication, "owner" | "memory" | "manifest">;

export interface PublicationEvents {
  /** Others may read this from now on; said again for each generation. */
  readonly offered: (manifest: WeightManifest) => void;
  /** Nobody may begin to read it: it is being changed, was withdrawn, or its engine is gone. */
  readonly withheld: (coordinate: Coordinate) => void;
}

export class Publications {
  readonly #byKey = new Map<string, Publication>();
  /** The last of each key, also of what is no longer there. */
  readonly #generations = new Map<string, number>();
  readonly #lent = new Map<string, { readonly publication: Publication; readonly lease: number }>();
  readonly #readersMax: number;
  readonly #events: PublicationEvents;
  readonly #newToken: () => string;

  /** @param newToken 32 hex characters that nobody can guess */
  constructor(readersMax: number, events: PublicationEvents, newToken: () => string) {
    this.#readersMax = readersMax;
    this.#events = events;
    this.#newToken = newToken;
  }

  /** What is offered whole. */
  list(): [string, Publication][] {
    return [...this.#byKey].filter(([, { growing }]) => growing.isComplete);
  }

  /** @throws conflict when a worker that is still connected has published the same part. */
  add({ owner, memory, manifest }: Published): {
    readonly key: string;
    readonly generation: number;
  } {
    const { coordinate } = manifest;
    const made = (generation: number) => ({ ...manifest, generation });
    const publication = this.#put({ owner, memory, coordinate, isComplete: true }, made);
    this.#events.offered(publication.manifest);
    return { key: publication.key, generation: publication.leases.generation };
  }

  /**
   * What a target begins to load. Readers may have what it has verified; nobody is told of it but them.
   * What it had begun before is of other values and ends.
   * @throws conflict
   */
  begin(
    {
      owner,
      memory,
      coordinate,
    }: Omit<Published, "manifest"> & { readonly coordinate: Coordinate },
    makeManifest: (generation: number) => WeightManifest,
  ): Publication {
    const before = this.#byKey.get(coordinateKey(coordinate));
    // Its memory is about to be written: what was offered there is no more.
    if (before?.owner === owner && before.growing.isComplete) this.withhold(before);
    return this.#put({ owner, memory, coordinate, isComplete: false }, makeManifest);
  }

  /** All of it has verified: from here on it is a source like any other. */
  complete(publication: Publication): void {
    if (this.#byKey.get(publication.key) !== publication) return;
    publication.growing.complete();
    this.#events.offered(publication.manifest);
  }

  /** It will not be whole. */
  abandon(publication: Publication): void {
    if (this.#byKey.get(publication.key) === publication) this.#byKey.delete(publication.key);
    publication.growing.end();
  }

  /** A token by which the lease's bytes can be read over a network. */
  lend(publication: Publication, lease: number, address: string | null): string {
    const token = this.#newToken();
    this.#forgetLapsed(publication);
    this.#lent.set(token, { publication, lease });
    if (address !== null) publication.readers.set(lease, address);
    return token;
  }

  takeBack(publication: Publication, lease: number): void {
    publication.readers.delete(lease);
    this.#forgetLapsed(publication);
  }

  lentBy(token: string): { readonly publication: Publication; readonly lease: number } | null {
    const lent = this.#lent.get(token);
    const isOffered =
      lent !== undefined && this.#byKey.get(lent.publication.key) === lent.publication;
    return isOffered ? lent : null;
  }

  peek(key: string): Publication | null {
    return this.#byKey.get(key) ?? null;
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
    this.#generations.set(publication.key, manifest.generation);
    publication.bytes = null;
    this.#events.offered(manifest);
  }

  removeOf(owner: object): void {
    for (const [key, publication] of this.#byKey) {
      if (publication.owner !== owner) continue;
      this.#byKey.delete(key);
      publication.growing.end();
      if (publication.growing.isComplete) this.withhold(publication);
    }
  }

  #put(
    what: Omit<Published, "manifest"> & {
      readonly coordinate: Coordinate;
      readonly isComplete: boolean;
    },
    makeManifest: (generation: number) => WeightManifest,
  ): Publication {
    const key = coordinateKey(what.coordinate);
    const present = this.#byKey.get(key);
    if (present !== undefined && present.owner !== what.owner) {
      throw new RelightError(
        "conflict",
        `Cannot publish "${key}": another worker of this node has published it`,
        { details: { key } },
      );
    }
    present?.growing.end();
    // Whoever has an older manifest must not take a lease of this one for its own.
    const generation = (this.#generations.get(key) ?? 0) + 1;
    this.#generations.set(key, generation);
    let made: WeightManifest | null = null;
    const publication: Publication = {
      key,
      owner: what.owner,
      memory: what.memory,
      // A loading target's is made when somebody asks: it has better things to do.
      get manifest() {
        made ??= makeManifest(generation);
        return made;
      },
      set manifest(manifest) {
        made = manifest;
      },
      leases: openLeases(this.#readersMax, generation),
      settled: Promise.resolve(),
      growing: new Growing(what.isComplete),
      readers: new Map(),
      bytes: null,
    };
    this.#byKey.set(key, publication);
    return publication;
  }

  /** Leases that ran out, were given back, or whose publication is gone. */
  #forgetLapsed(of: Publication): void {
    for (const [token, { publication, lease }] of this.#lent) {
      const isHeld = publication.leases.leases.some(({ id }) => id === lease);
      const isOffered = this.#byKey.get(publication.key) === publication;
      if (isHeld && isOffered) continue;
      this.#lent.delete(token);
      if (publication === of) publication.readers.delete(lease);
    }
  }
}
