// SPDX-License-Identifier: Apache-2.0
// Keeps a lease alive while its reader reads, and ends the reading as soon as the source says that what
// is read is no longer what it offered. What the source wants its reader to keep to is learned on the way.

import { asRelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import type { SourceLease } from "./source.ts";

interface KeeperOptions {
  readonly clock: Clock;
  readonly leaseMs: number;
  readonly signal: AbortSignal;
}

export class LeaseKeeper {
  /** Fires with the reader's own signal, or when the lease's generation is over. */
  readonly signal: AbortSignal;
  readonly #lease: SourceLease;
  readonly #options: KeeperOptions;
  readonly #over = new AbortController();
  #renewAtMs: number;
  #bytesPerSecondMax: number;

  constructor(lease: SourceLease, options: KeeperOptions) {
    this.#lease = lease;
    this.#options = options;
    this.#bytesPerSecondMax = lease.bytesPerSecondMax;
    this.#renewAtMs = this.#nextMs();
    this.signal = AbortSignal.any([options.signal, this.#over.signal]);
  }

  /** As the source said last. */
  get bytesPerSecondMax(): number {
    return this.#bytesPerSecondMax;
  }

  /** Called often while reading: asks for more time once a third of it is gone. */
  touch(): void {
    if (this.#options.clock.monotonicMs() < this.#renewAtMs) return;
    this.#renewAtMs = this.#nextMs();
    void this.#renew();
  }

  async #renew(): Promise<void> {
    try {
      const { leaseMs, signal } = this.#options;
      const { bytesPerSecondMax } = await this.#lease.renew(leaseMs, signal);
      this.#bytesPerSecondMax = bytesPerSecondMax;
    } catch (cause) {
      const error = asRelightError(cause);
      // Whether the bytes of a source that no longer answers are right, their digests say.
      if (error.code === "generation_changed") this.#over.abort(error);
    }
  }

  #nextMs(): number {
    return this.#options.clock.monotonicMs() + this.#options.leaseMs / 3;
  }
}
