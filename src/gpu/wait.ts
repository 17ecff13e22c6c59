// SPDX-License-Identifier: Apache-2.0
// When a wait for the GPU gives up: asked to, or out of time. Shared by all backends, for the contract
// promises the same codes from each.

import { RelightError } from "../errors.ts";
import type { Wait } from "./driver.ts";

/** @throws cancelled, deadline_exceeded */
export function checkWait(wait: Wait, deadline: number): void {
  if (wait.signal.aborted) {
    throw new RelightError("cancelled", "Cannot wait for the GPU: the wait was cancelled");
  }
  if (performance.now() >= deadline) {
    throw new RelightError(
      "deadline_exceeded",
      `Cannot wait for the GPU: not done after ${wait.deadlineMs} ms`,
      { details: { deadlineMs: wait.deadlineMs } },
    );
  }
}
