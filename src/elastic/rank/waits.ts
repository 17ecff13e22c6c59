// SPDX-License-Identifier: Apache-2.0
// Waiting for something else than a step: a device that opens, a promise that a signal may overtake.

import type { MembershipSession } from "../session.ts";
import type { RankDevice } from "./device.ts";
import type { EpGroupOptions } from "./options.ts";

/** Says that this rank lives while its device opens, which may take longer than the group is patient. */
export async function alive(
  opening: Promise<RankDevice>,
  session: MembershipSession,
  { clock, limits }: EpGroupOptions,
): Promise<RankDevice> {
  const opened = new AbortController();
  void (async () => {
    while (!opened.signal.aborted) {
      session.report({ type: "progress", launchedStep: 0, completedStep: 0 });
      await clock.sleep(limits.beatMs, opened.signal).catch(() => undefined);
    }
  })();
  try {
    return await opening;
  } finally {
    opened.abort();
  }
}

export async function raced<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  signal.throwIfAborted();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
