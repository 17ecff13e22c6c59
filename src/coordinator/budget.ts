// SPDX-License-Identifier: Apache-2.0
// How long the coordinator waits for its store. A store that takes longer has not answered, which is
// `store_unavailable` and not a deadline of the caller's.

import { RelightError } from "../errors.ts";

export interface Budget extends Disposable {
  readonly signal: AbortSignal;
  /** Ends the wait for another reason. */
  abort(reason: RelightError): void;
}

export function storeBudget(ms: number): Budget {
  const controller = new AbortController();
  const timer = setTimeout(() => {
    const message = `Cannot answer: no reply of the store in ${ms} ms`;
    controller.abort(new RelightError("store_unavailable", message));
  }, ms);
  return {
    signal: controller.signal,
    abort: (reason) => controller.abort(reason),
    [Symbol.dispose]: () => clearTimeout(timer),
  };
}
