// SPDX-License-Identifier: Apache-2.0
// The agent's side of weights: engines of this node publish and load here, agents of targets ask here
// for offers and leases. It holds what was published for as long as the engine's connection lives, so a
// killed engine withdraws itself. Bytes never pass through it.

import { randomBytes } from "node:crypto";
import { type WeightHostOptions, WeightSession } from "./host-session.ts";
import { contentId } from "./manifest.ts";
import { Publications } from "./publications.ts";
import { Readers } from "./readers.ts";
import { WeightServing } from "./serving.ts";

/** The memory is pinned only while somebody reads over a network. */
const servedRangesMax = 16;
const idleMsMax = 5_000;
const rangeMsMax = 30_000;

export class WeightHost implements AsyncDisposable {
  readonly #serving: WeightServing;
  readonly #options: WeightHostOptions;
  readonly #publications: Publications;

  constructor(options: WeightHostOptions) {
    this.#options = options;
    const unheard = { offered: () => {}, withheld: () => {} };
    const newToken = () => randomBytes(16).toString("hex");
    const events = options.events ?? unheard;
    this.#publications = new Publications(options.readersMax, events, newToken);
    this.#serving = new WeightServing({
      parts: options.parts,
      slotsMax: options.servedRangesMax ?? servedRangesMax,
      bytesPerSecondMax: options.bytesPerSecondMax ?? Number.POSITIVE_INFINITY,
      idleMsMax,
      rangeMsMax,
    });
  }

  /** One for each connection. */
  open(): WeightSession {
    return new WeightSession(this.#publications, this.#options, this.openReaders());
  }

  /** Agents of other machines, who may read and do nothing else. Their leases run out by themselves. */
  openReaders(): Readers {
    const { parts, bytesPerSecondMax, httpEndpoint } = this.#options;
    return new Readers(this.#publications, {
      clock: parts.clock,
      bytesPerSecondMax: bytesPerSecondMax ?? Number.POSITIVE_INFINITY,
      serving: this.#serving,
      httpEndpoint: httpEndpoint ?? (() => null),
    });
  }

  /** Gives back what serving over a network holds of the GPU. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#serving[Symbol.asyncDispose]();
  }

  /** What is offered now, for the dashboard and the coordinator. */
  offers(): { readonly key: string; readonly content: string; readonly readers: number }[] {
    return this.#publications.list().map(([key, { manifest, leases }]) => ({
      key,
      content: contentId(manifest),
      readers: leases.leases.length,
    }));
  }
}
