// SPDX-License-Identifier: Apache-2.0
// A budget as an AbortSignal: the reason it fires with is the error that the waiter then throws.

import { RelightError } from "../errors.ts";
import { type Clock, systemClock } from "./clock.ts";

export interface Deadline extends Disposable {
  readonly signal: AbortSignal;
}

/** Fires `deadline_exceeded` after `ms`, or earlier with the reason of `parent`. Dispose to free the timer. */
export function startDeadline(what: string, ms: number, parent?: AbortSignal): Deadline {
  return startDeadlineOn(systemClock, {
    what,
    ms,
    ...(parent === undefined ? {} : { parent }),
  });
}

/** The same by the caller's clock, where the simulator owns time. */
export function startDeadlineOn(
  clock: Clock,
  { what, ms, parent }: { what: string; ms: number; parent?: AbortSignal },
): Deadline {
  const controller = new AbortController();
  const stop = new AbortController();
  const onParent = () => controller.abort(parent?.reason);
  clock.sleep(ms, stop.signal).then(
    () => controller.abort(exceeded(what, ms)),
    () => {}, // Disposed in time.
  );
  if (parent?.aborted) onParent();
  else parent?.addEventListener("abort", onParent, { once: true });
  return {
    signal: controller.signal,
    [Symbol.dispose]: () => {
      stop.abort();
      parent?.removeEventListener("abort", onParent);
    },
  };
}

function exceeded(what: string, ms: number): RelightError {
  return new RelightError(
    "deadline_exceeded",
    `Cannot finish ${what}: ${Math.round(ms)} ms were not enough`,
    { details: { what, ms } },
  );
}
