// SPDX-License-Identifier: Apache-2.0
// Each commit plays histories of its own: its seeds begin at its hash.

import { execFileSync } from "node:child_process";

/** A fixed one outside a checkout, as in an installed package. */
export function seedOfCommit(): number {
  try {
    const hash = execFileSync("git", ["rev-parse", "HEAD"], { encoding: "utf8", timeout: 5_000 });
    return Number.parseInt(hash.slice(0, 7), 16);
  } catch {
    return 1_000;
  }
}
