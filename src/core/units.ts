// SPDX-License-Identifier: Apache-2.0
// Sizes in bytes and times in milliseconds, and how people write them.

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;

/** "1.3 GiB", "12 KiB", "17 B". */
export function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ["GiB", GiB],
    ["MiB", MiB],
    ["KiB", KiB],
  ] as const) {
    if (bytes >= size) return `${trim(bytes / size)} ${unit}`;
  }
  return `${bytes} B`;
}

/** "3.4 s", "120 ms". */
export function formatMs(ms: number): string {
  return ms >= 1_000 ? `${trim(ms / 1_000)} s` : `${Math.round(ms)} ms`;
}

/** "1 file", "3 files". */
export function count(number: number, noun: string): string {
  return `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;
}

function trim(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}
