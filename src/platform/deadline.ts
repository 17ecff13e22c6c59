// SPDX-License-Identifier: Apache-2.0
// A budget as an AbortSignal: the reason it fires with is the error that the waiter then throws.

import { RelightError } from "../errors.ts";

export interface Deadline extends Disposable {
  readonly signal: AbortSignal;
}

/** Fires `deadline_exceeded` after `ms`, or earlier with the reason of `parent`. Dispose to free the timer. */
export function startDeadline(what: string, ms: number, parent?: AbortSignal): Deadline {
  const controller = new AbortController();
  const onParent = () => controller.abort(parent?.reason);
  const timer = setTimeout(() => {
    controller.abort(
      new RelightError(
        "deadline_exceeded",
        `Cannot finish ${what}: ${Math.round(ms)} ms were not enough`,
        {
          details: { what, ms },
        },
      ),
    );
  }, ms);
  if (parent?.aborted) onParent();
  else parent?.addEventListener("abort", onParent, { once: true });
  return {
    signal: controller.signal,
    [Symbol.dispose]: () => {
      clearTimeout(timer);
      parent?.removeEventListener("abort", onParent);
    },
  };
}
