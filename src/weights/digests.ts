// SPDX-License-Identifier: Apache-2.0
// A tensor's digest from the digests of its rows. The GPU gives 128 bits for each contiguous range; a
// tensor of one range has that, one of several the BLAKE3 of theirs in order, cut to 128 bits.

import { blake3Hex } from "../core/digest.ts";
import { assert } from "../errors.ts";
import { at, type Command, type DevicePtr } from "../gpu/driver.ts";
import { rowBlocks, rowCount, type Tensor } from "./tensor.ts";

export interface Segment {
  readonly address: DevicePtr;
  readonly bytes: number;
}

/** In this order on one stream; `run` may wait for what brings the bytes, `prepare` waits for nothing. */
export interface DigestCommands {
  readonly prepare: readonly Command[];
  readonly run: readonly Command[];
  /** Brings the digests to where `collected` finds them. */
  readonly collect: readonly Command[];
}

/** The GPU's half, as gpu/digest.ts does it: digests of contiguous ranges, kept in numbered places. */
export interface Digester {
  commands(
    segments: readonly Segment[],
    place: { readonly seed: bigint; readonly first: number },
  ): DigestCommands;
  /** What `collect` has brought, once the stream has come behind it. */
  collected(places: { readonly first: number; readonly count: number }): string[];
}

/** The tensor's own bytes as ranges, `base` being where its allocation is mapped. */
export function segmentsOf(tensor: Tensor, base: DevicePtr): Segment[] {
  return rowBlocks(tensor).flatMap(({ offsetBytes, rowBytes, rows, pitchBytes }) => {
    if (rows === 1) return { address: at(base, offsetBytes), bytes: rowBytes };
    return Array.from({ length: rows }, (_, row) => ({
      address: at(base, offsetBytes + row * pitchBytes),
      bytes: rowBytes,
    }));
  });
}

/** How many places the digests of these tensors take. */
export function placeCount(tensors: readonly Tensor[]): number {
  return tensors.reduce((sum, tensor) => sum + rowCount(tensor), 0);
}

/** The digest of a tensor with bytes. @param rows the digests of its ranges, in order */
export function combineDigests(rows: readonly string[]): string {
  const [only] = rows;
  assert(only !== undefined, "a tensor with bytes has a range");
  return rows.length === 1 ? only : blake3Hex(Buffer.from(rows.join(""), "hex")).slice(0, 32);
}

/** Cuts a list of range digests into the tensors that they belong to; `null` for one without bytes. */
export function digestsByTensor(
  tensors: readonly Tensor[],
  ranges: readonly string[],
): (string | null)[] {
  let next = 0;
  return tensors.map((tensor) => {
    const count = rowCount(tensor);
    const rows = ranges.slice(next, next + count);
    next += count;
    return count === 0 ? null : combineDigests(rows);
  });
}
