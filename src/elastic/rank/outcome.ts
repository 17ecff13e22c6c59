// SPDX-License-Identifier: Apache-2.0
// Whether everybody who should have taken part in a step did. Pure.

import type { DeviceReport } from "./device.ts";

/** Slots of which this step lacked something: expected and not taking part, or lost on the way. */
export function lostIn(
  { dispatch, combine }: DeviceReport,
  { last, expected }: { readonly last: bigint; readonly expected: number },
): number {
  // A half that another step ended is not this step's; then all of it is unknown.
  if (dispatch.epoch !== last || combine.epoch !== last) return expected;
  const present = dispatch.used & combine.used;
  return ((expected & ~present) | dispatch.failed | combine.failed) >>> 0;
}

export function slotsIn(mask: number): number[] {
  return Array.from({ length: 32 }, (_, slot) => slot).filter((slot) => (mask >>> slot) & 1);
}
