// SPDX-License-Identifier: Apache-2.0
// What /proc says of a process: enough to tell it from a later one of the same number.

import { readFileSync } from "node:fs";

/** The kernel's id of this boot. */
export function bootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
}

/** Clock ticks from boot to the process's start; null when it has ended. */
export function startTicksOf(pid: number): number | null {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return null; // ENOENT or ESRCH: there is none.
  }
  // The name, in parentheses, may hold anything; state is the first field after it, start the 20th.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return null;
  const ticks = Number(fields[19]);
  return Number.isSafeInteger(ticks) ? ticks : null;
}
