// SPDX-License-Identifier: Apache-2.0
// Time, passed in wherever a decision depends on it, so that the simulator can own it.

import { performance } from "node:perf_hooks";
import { setTimeout as delay } from "node:timers/promises";

export interface Clock {
  /** Unix milliseconds. May jump; only for what people read and what crosses machines. */
  wallMs(): number;
  /** Milliseconds that never go back. For every duration and deadline. */
  monotonicMs(): number;
  /** Rejects with the signal's reason when it fires first. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep: async (ms, signal) => {
    signal.throwIfAborted();
    await delay(ms, undefined, { signal }).catch((error: unknown) => {
      throw signal.reason ?? error;
    });
  },
};
