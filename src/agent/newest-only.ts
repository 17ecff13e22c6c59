// SPDX-License-Identifier: Apache-2.0
// What somebody else says as often as he likes, heard as often as we like: one at a time, with a pause
// between, and of what arrives meanwhile only the newest.

import type { Clock } from "../platform/clock.ts";

/**
 * @param work must not throw: whoever calls the returned function does not wait for it
 * @returns what to call with each new value; returns at once and keeps at most one value
 */
export function newestOnly<Value>(
  work: (value: Value) => Promise<void>,
  { pauseMs, clock, signal }: { pauseMs: number; clock: Clock; signal: AbortSignal },
): (value: Value) => void {
  let waiting: { readonly value: Value } | null = null;
  let isBusy = false;
  const drain = async (): Promise<void> => {
    while (waiting !== null && !signal.aborted) {
      const { value } = waiting;
      waiting = null;
      await work(value);
      await clock.sleep(pauseMs, signal).catch(() => {});
    }
    isBusy = false;
  };
  return (value) => {
    waiting = { value };
    if (isBusy) return;
    isBusy = true;
    void drain();
  };
}
