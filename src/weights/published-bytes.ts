// SPDX-License-Identifier: Apache-2.0
// Which bytes of an engine's allocations are weights. An allocation may hold what is nobody's business
// beside them, such as the cache of a user's words, and over a network only weights are given out.

import type { WeightLayout } from "./manifest.ts";
import { rowBlocks } from "./tensor.ts";

/** Allocators round to this; the bytes up to the next multiple belong to no other tensor. */
const roundingBytes = 512;

export class PublishedBytes {
  /** By allocation: where runs of weights begin and end, in order, by turns. */
  readonly #borders: readonly (readonly number[])[];

  constructor(layout: WeightLayout) {
    const runs: [number, number][][] = layout.allocations.map(() => []);
    for (const tensor of layout.tensors) {
      for (const { offsetBytes, rowBytes, rows, pitchBytes } of rowBlocks(tensor)) {
        for (let row = 0; row < rows; row += 1) {
          const from = offsetBytes + row * pitchBytes;
          runs[tensor.allocation]?.push([from, from + rowBytes]);
        }
      }
    }
    this.#borders = runs.map(joined);
  }

  includes(range: {
    readonly allocation: number;
    readonly offsetBytes: number;
    readonly bytes: number;
  }): boolean {
    const borders = this.#borders[range.allocation] ?? [];
    let low = 0;
    let high = borders.length / 2;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((borders[2 * middle] ?? 0) <= range.offsetBytes) low = middle;
      else high = middle;
    }
    const [from, to] = [borders[2 * low], borders[2 * low + 1]];
    if (from === undefined || to === undefined) return false;
    return from <= range.offsetBytes && range.offsetBytes + range.bytes <= to;
  }
}

function joined(runs: readonly [number, number][]): number[] {
  const borders: number[] = [];
  let end = Number.NEGATIVE_INFINITY;
  for (const [from, to] of runs.toSorted(([one], [other]) => one - other)) {
    const reachesNext = from <= end || (from % roundingBytes === 0 && from - end < roundingBytes);
    if (!reachesNext) borders.push(from, to);
    end = Math.max(end, to);
    borders[borders.length - 1] = end;
  }
  return borders;
}
