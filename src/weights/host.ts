// SPDX-License-Identifier: Apache-2.0
// The agent's side of weights: engines of this node publish and load here, agents of targets ask here
// for offers and leases. It holds what was published for as long as the engine's connection lives, so a
// killed engine withdraws itself. Bytes never pass through it.

import { type WeightHostOptions, WeightSession } from "./host-session.ts";
import { contentId } from "./manifest.ts";
import { Publications } from "./publications.ts";

export class WeightHost {
  readonly #options: WeightHostOptions;
  readonly #publications: Publications;

  constructor(options: WeightHostOptions) {
    this.#options = options;
    const unheard = { offered: () => {}, withheld: () => {} };
    this.#publications = new Publications(options.readersMax, options.events ?? unheard);
  }

  /** One for each connection. */
  open(): WeightSession {
    return new WeightSession(this.#publications, this.#options);
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
