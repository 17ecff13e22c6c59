// SPDX-License-Identifier: Apache-2.0
// Keeps bytes to a rate that may change while they pass. What was not used is saved up for no longer than
// a timer errs, so that a pause is never followed by a burst that the serving engine would feel.

import type { Clock } from "../platform/clock.ts";

/** Timers of the system wake up so late; without it a fast rate would be kept to by far too much. */
const savedMsMax = 4;

export class Pacer {
  readonly #clock: Clock;
  readonly #rate: () => number;
  #freeAtMs: number | null = null;

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
    const from = Math.max(now - savedMsMax, this.#freeAtMs ?? now);
    const freeAtMs = from + (bytes / bytesPerSecond) * 1_000;
    this.#freeAtMs = freeAtMs;
    if (freeAtMs > now) await this.#clock.sleep(freeAtMs - now, signal);
  }
}
