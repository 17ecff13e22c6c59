// SPDX-License-Identifier: Apache-2.0
// A whole fleet in one thread: one coordinator, one replica that is warm from the beginning, and the
// others, which start cold. Built from a seed; whoever plays it moves time.

import type { FoundSource } from "../../src/agent/coordinator-client.ts";
import {
  encodeManifest,
  listPieces,
  type ManifestFile,
  type SealedManifest,
} from "../../src/artifacts/manifest.ts";
import { blake3Hex, chunkedDigest, wholeDigest } from "../../src/core/digest.ts";
import { chunkBytes } from "../../src/core/pieces.ts";
import type { BytePathParts, Host } from "./byte-path.ts";
import { Checkers } from "./checkers.ts";
import { SimCoordinator } from "./coordinator.ts";
import { Network } from "./network.ts";
import { budgets as budgetDefaults, cacheName, Replica, type ReplicaWorld } from "./replica.ts";
import { Chance, Timeline } from "./timeline.ts";

/**
 * What canaries have, so that the checkers are seen to object: `blind`, targets write what they did not
 * verify; `crowded`, sources admit everybody; `forgetful`, silent sessions never end.
 */
export type Defect = "blind" | "crowded" | "forgetful";

export interface FleetOptions {
  readonly seed: number;
  readonly replicas: number;
  readonly isRelaying: boolean;
  /** In bytes. */
  readonly fileSizes: readonly number[];
  /** Of each node's link, each way. */
  readonly bytesPerMs: number;
  readonly readersMax: number;
  readonly budgets?: typeof budgetDefaults;
  readonly defect?: Defect;
}

/** Within one data centre. */
const latencyMs = 0.25;

export class Fleet {
  readonly timeline = new Timeline();
  readonly chance: Chance;
  readonly checkers: Checkers;
  readonly coordinator: SimCoordinator;
  readonly bytePath: BytePathParts;
  readonly manifest: SealedManifest;
  readonly pieceCount: number;
  readonly origin: Replica;
  readonly replicas: Replica[] = [];
  readonly bytesPerMs: number;
  readonly lostMs = new Map<string, number>();
  readonly isRelaying: boolean;
  readonly #options: FleetOptions;
  readonly #world: ReplicaWorld;
  #isCoordinatorStarting = false;

  constructor(options: FleetOptions) {
    const { seed, bytesPerMs, isRelaying } = options;
    this.#options = options;
    this.bytesPerMs = bytesPerMs;
    this.isRelaying = isRelaying;
    this.chance = new Chance(seed);
    this.checkers = new Checkers(this.timeline);
    const network = new Network(this.timeline, { latencyMs });
    const hosts = new Map<string, Host>();
    const coordinatorNode = network.addNode("coordinator", bytesPerMs);
    this.coordinator = new SimCoordinator(this.timeline, this.chance, {
      node: coordinatorNode,
      isForgetful: options.defect === "forgetful",
    });
    this.manifest = manifestOf(options.fileSizes);
    this.pieceCount = listPieces(this.manifest).length;
    this.bytePath = {
      network,
      chance: this.chance,
      checkers: this.checkers,
      hosts,
      flips: 0,
      isBlind: options.defect === "blind",
      isCrowded: options.defect === "crowded",
    };
    this.#world = {
      timeline: this.timeline,
      bytePath: this.bytePath,
      coordinator: this.coordinator,
      hosts,
      manifest: this.manifest,
      isRelaying,
      budgets: options.budgets ?? budgetDefaults,
      lostMs: this.lostMs,
      onFound: (to, source) => this.#checkOffer(to, source),
    };
    this.origin = this.#addReplica("origin");
    for (const { path } of this.manifest.files) this.origin.disk.installed.add(path);
    for (let index = 0; index < options.replicas; index++) this.addReplica();
  }

  addReplica(): Replica {
    const replica = this.#addReplica(`replica-${this.replicas.length}`);
    this.replicas.push(replica);
    return replica;
  }

  #addReplica(name: string): Replica {
    const { bytesPerMs, readersMax } = this.#options;
    const index = this.bytePath.hosts.size + 1;
    return new Replica(this.#world, { index, name, bytesPerMs, readersMax });
  }

  /** Coordinator and origin are up, and the origin is offered. */
  async open(): Promise<void> {
    await this.coordinator.start();
    this.origin.start();
    await this.timeline.run(2_000, () => false);
  }

  restartCoordinator(): void {
    if (this.coordinator.registry !== null || this.#isCoordinatorStarting) return;
    this.#isCoordinatorStarting = true;
    void this.coordinator.start().finally(() => {
      this.#isCoordinatorStarting = false;
    });
  }

  get isBooting(): boolean {
    return this.replicas.some(({ running }) => running === null || running.isBooting);
  }

  /** How much the target that is furthest has of the artifact, from 0 to 1. */
  furthestShare(): number {
    return this.checkers.writtenMost() / this.pieceCount;
  }

  #checkOffer(to: string, { workerId }: FoundSource): void {
    const lostMs = this.lostMs.get(workerId);
    const { heardMs, startedMs } = this.coordinator;
    // Also what was heard later counts: a heartbeat that was on its way when its sender was lost. And
    // while the coordinator was away it offered nothing; afterwards sessions get a grace to come back.
    const sinceMs =
      lostMs === undefined ? null : Math.max(lostMs, heardMs.get(workerId) ?? 0, startedMs);
    this.checkers.offers({ to, source: workerId, lostMs: sinceMs });
  }
}

function manifestOf(sizes: readonly number[]): SealedManifest {
  let count = 0;
  const nextDigest = () => blake3Hex(Buffer.from(`piece ${count++}`));
  const files = sizes.map((size, index): ManifestFile => {
    const chunkCount = size > chunkBytes ? Math.ceil(size / chunkBytes) : 0;
    const chunks = Array.from({ length: chunkCount }, nextDigest);
    const digest = chunkCount > 0 ? chunkedDigest(chunks) : wholeDigest(nextDigest());
    const path = `k${String(index).padStart(5, "0")}/kernel.cubin`;
    return { path, mode: 0o644, size, form: "plain", digest, chunks };
  });
  return encodeManifest({ family: cacheName, files });
}
