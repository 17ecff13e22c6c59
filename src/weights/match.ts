// SPDX-License-Identifier: Apache-2.0
// Whether a source's weights fit a target's tensors. A refusal names the first difference; nothing is
// ever concluded from counts, names alone or equal shapes.

import { RelightError } from "../errors.ts";
import { coordinateDifference } from "./coordinate.ts";
import type { WeightLayout, WeightManifest } from "./manifest.ts";
import { rowBlocks, spanBytes, type Tensor } from "./tensor.ts";

/** A target's tensor and the source's of the same name, by index. */
export interface TensorPair {
  readonly target: number;
  readonly source: number;
  /** Equal for tensors of the target that are made of the same bytes. */
  readonly place: string;
}

/** @throws layout_mismatch */
export function matchLayouts(source: WeightManifest, target: WeightLayout): TensorPair[] {
  const difference = headDifference(source, target);
  if (difference !== null) throw mismatch(difference);
  const byName = new Map(source.tensors.map((tensor, index) => [tensor.name, index]));
  const pairs = target.tensors.map((wanted, index) => {
    const at = byName.get(wanted.name);
    const offered = at === undefined ? undefined : source.tensors[at];
    if (at === undefined || offered === undefined) throw mismatch(`it has no "${wanted.name}"`);
    const different = tensorDifference(offered, wanted);
    if (different !== null) throw mismatch(`"${wanted.name}" has ${different}`);
    return { target: index, source: at, place: placeKey(wanted) };
  });
  checkNothingLeft(source, target);
  checkAliases(pairs, source, target);
  return pairs;
}

function headDifference(source: WeightLayout, target: WeightLayout): string | null {
  for (const field of ["model", "revision", "state", "arch"] as const) {
    const [have, want] = [source[field], target[field]];
    if (have !== want) return `its ${field} is "${have}", wanted "${want}"`;
  }
  return coordinateDifference(source.coordinate, target.coordinate);
}

function tensorDifference(offered: Tensor, wanted: Tensor): string | null {
  if (offered.dtype !== wanted.dtype) return `dtype ${offered.dtype}, wanted ${wanted.dtype}`;
  for (const field of ["shape", "stride"] as const) {
    const [have, want] = [offered[field], wanted[field]];
    const isSame = have.length === want.length && have.every((one, axis) => one === want[axis]);
    if (!isSame) return `${field} ${have}, wanted ${want}`;
  }
  return null;
}

/** A tensor that the target does not know of is state that it would compute wrongly without. */
function checkNothingLeft(source: WeightLayout, target: WeightLayout): void {
  if (source.tensors.length === target.tensors.length) return;
  const wanted = new Set(target.tensors.map(({ name }) => name));
  const extra = source.tensors.find(({ name }) => !wanted.has(name));
  throw mismatch(`it has "${extra?.name}", which the target does not have`);
}

/** Two names for the same memory of the target can only be filled from equal values. */
function checkAliases(
  pairs: readonly TensorPair[],
  source: WeightManifest,
  target: WeightLayout,
): void {
  const seen = new Map<string, TensorPair>();
  for (const pair of pairs) {
    const tensor = target.tensors[pair.target];
    if (tensor === undefined || spanBytes(tensor) === 0) continue;
    const first = seen.get(pair.place);
    if (first === undefined) seen.set(pair.place, pair);
    else if (source.digests[first.source] !== source.digests[pair.source]) {
      const other = target.tensors[first.target]?.name;
      throw mismatch(`"${tensor.name}" and "${other}" differ, and share memory at the target`);
    }
  }
}

/** Equal for tensors that are made of the same bytes of the same allocation. */
function placeKey(tensor: Tensor): string {
  const blocks = rowBlocks(tensor);
  let key = `${tensor.allocation}`;
  for (const { offsetBytes, rowBytes, rows, pitchBytes } of blocks) {
    key +=
      rows === 1
        ? ` ${offsetBytes}+${rowBytes}`
        : ` ${offsetBytes}+${rowBytes}*${rows}/${pitchBytes}`;
  }
  return key;
}

function mismatch(difference: string): RelightError {
  return new RelightError("layout_mismatch", `Cannot take weights from this source: ${difference}`);
}
