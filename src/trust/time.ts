// SPDX-License-Identifier: Apache-2.0
// Times inside signed documents: RFC 3339 in UTC with milliseconds, one spelling for each, so that
// canonical bytes stay canonical. In code they are Unix milliseconds.

import { z } from "zod";

/** How far two clocks may differ before a document counts as made in the future, in milliseconds. */
export const clockSkewMsMax = 5 * 60_000;

export const timeShape = z
  .string()
  .length(24)
  .refine((text) => {
    const ms = Date.parse(text);
    return Number.isFinite(ms) && new Date(ms).toISOString() === text;
  }, "want a time like 2026-01-31T12:00:00.000Z");

export function timeMs(text: string): number {
  return Date.parse(text);
}

export function timeText(ms: number): string {
  return new Date(ms).toISOString();
}
