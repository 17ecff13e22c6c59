// SPDX-License-Identifier: Apache-2.0
// Keeps bytes to a rate that may change while they pass. What was not used is not saved up, so that a
// pause is never followed by a burst that the serving engine would feel.

import type { Clock } from "../platform/clock.ts";

export class Pacer {
  readonly #clock: Clock;
  readonly #rate: () => number;
  #freeAtMs = Number.NEGATIVE_INFINITY;

  /** @param bytesPerSecond asked for each time; Infinity for no cap */
  constructor(clock: Clock, bytesPerSecond: () => number) {
    this.#clock = clock;
    this.#rate = bytesPerSecond;
  }

  /** Resolves when these bytes may have passed. */
  async pass(bytes: number, signal: AbortSignal): Promise<void> {
    const bytesPerSecond = this.#rate();
    if (!Number.isFinite(bytesPerSecond)) return;
    const now = this.#clock.monotonicMs();
    this.#freeAtMs = Math.max(now, this.#freeAtMs) + (bytes / bytesPerSecond) * 1_000;
    if (this.#freeAtMs > now) await this.#clock.sleep(this.#freeAtMs - now, signal);
  }
}
