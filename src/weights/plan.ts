// SPDX-License-Identifier: Apache-2.0
// What to copy, in which order, and what to check after which copy. Neighbours that lie the same way on
// both sides travel as one: a copy costs microseconds whatever its size, and engines have tens of
// thousands of tensors. Pure; addresses are bound by transfer.ts.

import { assert } from "../errors.ts";
import type { WeightLayout } from "./manifest.ts";
import type { TensorPair } from "./match.ts";
import { rowBlocks } from "./tensor.ts";

export interface Region {
  readonly allocation: number;
  readonly offsetBytes: number;
}

export interface PlannedCopy {
  readonly from: Region;
  readonly to: Region;
  readonly rowBytes: number;
  readonly rows: number;
  readonly fromPitchBytes: number;
  readonly toPitchBytes: number;
}

/** Copies that go together, and the target's tensors that are whole once they are done. */
export interface Batch {
  readonly copies: readonly PlannedCopy[];
  /** Indices of the target's tensors. */
  readonly tensors: readonly number[];
  readonly bytes: number;
}

export interface TransferPlan {
  readonly batches: readonly Batch[];
  /** Target tensors without bytes: right without a copy. */
  readonly empty: readonly number[];
  readonly bytes: number;
  readonly copyCount: number;
}

export interface PlanOptions {
  /** A batch is checked while the next is copied; its check is what remains after the last copy. */
  readonly batchBytes: number;
}

// Allocators round to this; the bytes between a tensor's end and the next multiple belong to nobody.
const roundingBytes = 512;

export function planTransfer(
  pairs: readonly TensorPair[],
  source: WeightLayout,
  target: WeightLayout,
  options: PlanOptions,
): TransferPlan {
  const empty: number[] = [];
  const runs: Piece[] = [];
  const strided: Piece[] = [];
  for (const group of sharedPlaces(pairs)) {
    const pieces = piecesOf(group, source, target);
    if (pieces.length === 0) empty.push(...group.map((pair) => pair.target));
    else if (pieces.length === 1 && pieces[0]?.copy.rows === 1) runs.push(pieces[0]);
    else strided.push(...pieces);
  }
  const batches = cutBatches([...coalesce(runs), ...strided], options.batchBytes);
  return {
    batches,
    empty,
    bytes: batches.reduce((sum, batch) => sum + batch.bytes, 0),
    copyCount: batches.reduce((sum, batch) => sum + batch.copies.length, 0),
  };
}

/** A copy, and which tensors are whole when everything up to `endBytes` of it has arrived. */
interface Piece {
  readonly copy: PlannedCopy;
  readonly completes: readonly Completion[];
}

interface Completion {
  readonly tensor: number;
  readonly endBytes: number;
}

/** Pairs whose target tensors are the same bytes, so that these are copied once. */
function sharedPlaces(pairs: readonly TensorPair[]): TensorPair[][] {
  const places = new Map<string, TensorPair[]>();
  for (const pair of pairs) {
    const group = places.get(pair.place);
    if (group === undefined) places.set(pair.place, [pair]);
    else group.push(pair);
  }
  return [...places.values()];
}

function piecesOf(
  group: readonly TensorPair[],
  source: WeightLayout,
  target: WeightLayout,
): Piece[] {
  const [pair] = group;
  assert(pair !== undefined, "a group has a pair");
  const [from, to] = [source.tensors[pair.source], target.tensors[pair.target]];
  assert(from !== undefined && to !== undefined, "a pair names tensors of both sides");
  const [fromBlocks, toBlocks] = [rowBlocks(from), rowBlocks(to)];
  return toBlocks.map((block, index) => {
    const other = fromBlocks[index];
    assert(other !== undefined, "equal shape and stride give equal blocks");
    const copy = {
      from: { allocation: from.allocation, offsetBytes: other.offsetBytes },
      to: { allocation: to.allocation, offsetBytes: block.offsetBytes },
      rowBytes: block.rowBytes,
      rows: block.rows,
      fromPitchBytes: other.pitchBytes,
      toPitchBytes: block.pitchBytes,
    };
    const isLast = index === toBlocks.length - 1;
    const endBytes = copyBytes(copy);
    return {
      copy,
      completes: isLast ? group.map((one) => ({ tensor: one.target, endBytes })) : [],
    };
  });
}

export function copyBytes(copy: PlannedCopy): number {
  return copy.rowBytes * copy.rows;
}

/** Joins pieces of one row each with their neighbours. */
function coalesce(runs: readonly Piece[]): Piece[] {
  const sorted = [...runs].sort(
    (one, other) =>
      one.copy.from.allocation - other.copy.from.allocation ||
      one.copy.from.offsetBytes - other.copy.from.offsetBytes,
  );
  const joined: { copy: PlannedCopy; rowBytes: number; completes: Completion[] }[] = [];
  for (const { copy, completes } of sorted) {
    const last = joined.at(-1);
    const gap = last === undefined ? null : gapBetween(last, copy);
    if (last === undefined || gap === null) {
      joined.push({ copy, rowBytes: copy.rowBytes, completes: [...completes] });
      continue;
    }
    const before = last.rowBytes + gap;
    last.rowBytes = before + copy.rowBytes;
    for (const { tensor, endBytes } of completes) {
      last.completes.push({ tensor, endBytes: before + endBytes });
    }
  }
  return joined.map(({ copy, rowBytes, completes }) => ({
    copy: { ...copy, rowBytes, fromPitchBytes: rowBytes, toPitchBytes: rowBytes },
    completes,
  }));
}

/** How many bytes of nobody lie between two copies on both sides, or `null` when they do not join. */
function gapBetween(
  { copy: before, rowBytes }: { readonly copy: PlannedCopy; readonly rowBytes: number },
  after: PlannedCopy,
): number | null {
  const sameAllocations =
    before.from.allocation === after.from.allocation &&
    before.to.allocation === after.to.allocation;
  if (!sameAllocations) return null;
  const fromEnd = before.from.offsetBytes + rowBytes;
  const toEnd = before.to.offsetBytes + rowBytes;
  const gap = after.from.offsetBytes - fromEnd;
  if (gap < 0 || gap !== after.to.offsetBytes - toEnd || gap >= roundingBytes) return null;
  if (gap === 0) return 0;
  const isRounding =
    after.from.offsetBytes % roundingBytes === 0 && after.to.offsetBytes % roundingBytes === 0;
  return isRounding ? gap : null;
}

function cutBatches(pieces: readonly Piece[], batchBytes: number): Batch[] {
  const batches: { copies: PlannedCopy[]; tensors: number[]; bytes: number }[] = [];
  let open = { copies: [] as PlannedCopy[], tensors: [] as number[], bytes: 0 };
  const push = (copy: PlannedCopy) => {
    if (open.copies.length === 0) batches.push(open);
    open.copies.push(copy);
    open.bytes += copyBytes(copy);
  };
  for (const piece of pieces) {
    let done = 0;
    let completed = 0;
    for (const copy of cutCopy(piece.copy, batchBytes)) {
      if (open.bytes > 0 && open.bytes + copyBytes(copy) > batchBytes) {
        open = { copies: [], tensors: [], bytes: 0 };
      }
      push(copy);
      done += copyBytes(copy);
      for (let next = piece.completes[completed]; next !== undefined; ) {
        if (next.endBytes > done) break;
        open.tensors.push(next.tensor);
        completed += 1;
        next = piece.completes[completed];
      }
    }
  }
  return batches;
}

/** One row is cut into pieces of at most `batchBytes`; rows stay together. */
function* cutCopy(copy: PlannedCopy, batchBytes: number): Generator<PlannedCopy> {
  if (copy.rows > 1 || copy.rowBytes <= batchBytes) {
    yield copy;
    return;
  }
  for (let done = 0; done < copy.rowBytes; done += batchBytes) {
    const rowBytes = Math.min(batchBytes, copy.rowBytes - done);
    yield {
      from: { ...copy.from, offsetBytes: copy.from.offsetBytes + done },
      to: { ...copy.to, offsetBytes: copy.to.offsetBytes + done },
      rowBytes,
      rows: 1,
      fromPitchBytes: rowBytes,
      toPitchBytes: rowBytes,
    };
  }
}
