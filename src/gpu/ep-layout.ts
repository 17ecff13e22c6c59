// SPDX-License-Identifier: Apache-2.0
// The sizes of a rank's window and scratch, which the host must allocate before it calls
// relight_ep_init: the arithmetic of include/relight/device/layout.cuh, slice by slice.

/** The configuration of RelightEpState that decides sizes. All ranks of a group have the same. */
export type EpShape = {
  readonly ranksMax: number;
  readonly tokensMax: number;
  readonly hidden: number;
  readonly topk: number;
  readonly localExpertsMax: number;
  /** 1: dispatch and combine alternate. 2: two steps may be in flight. */
  readonly parities: 1 | 2;
  /** Room for the per-selection baseline. */
  readonly hasSelectRows: boolean;
};

/** Bytes, and the offsets in the window that a zero-copy reader needs. */
export type EpLayout = {
  readonly windowBytes: number;
  readonly scratchBytes: number;
  readonly rowAt: number;
  readonly combineAt: number;
  readonly rowStride: number;
  /** Weights stand before a row's payload. */
  readonly rowHeaderBytes: number;
};

const lineBytes = 128 * 32;
const cellBytes = 8;
const pieces = 8;
const tallyMax = 16_384;
const slotsMax = 32;

/** Where things lie and how much memory they take. */
export function epLayout(shape: EpShape): EpLayout {
  const slices = shape.parities * shape.ranksMax;
  const rows = slices * shape.tokensMax;
  const rowHeaderBytes = align(4 * shape.topk, 16);
  const rowStride = align(rowHeaderBytes + rowBytesMax(shape.hidden), 128);
  const combineStride = align(2 * shape.hidden, 128);
  const choices = shape.tokensMax * shape.topk;
  const rowAt =
    lineBytes +
    align(rows * cellBytes, 128) +
    align(rows * pieces * cellBytes, 128) +
    slices * (routeStride(shape) + align(choices * 4, 128));
  const combineAt = rowAt + rows * rowStride;
  const selectAt = combineAt + rows * combineStride;
  const windowBytes =
    selectAt + (shape.hasSelectRows ? selectBytes(shape, rowStride + 128 + combineStride) : 0);
  return {
    windowBytes,
    scratchBytes: scratchBytes(shape, slices * choices),
    rowAt,
    combineAt,
    rowStride,
    rowHeaderBytes,
  };
}

/** The largest row of any format: bf16, or e4m3 with f32 scales. */
function rowBytesMax(hidden: number): number {
  return Math.max(2 * hidden, align(hidden, 16) + align(Math.ceil(hidden / 128) * 4, 16));
}

/** A routing table: two words, then counts and choices of each block, two in a word. */
function routeStride(shape: EpShape): number {
  const pairs = shape.localExpertsMax * shape.ranksMax;
  let blockTokens = 128;
  while (Math.ceil(shape.tokensMax / blockTokens) * pairs > tallyMax) blockTokens *= 2;
  const countWords = align(Math.ceil(shape.localExpertsMax / 2), 2);
  const words = countWords + (shape.topk * blockTokens) / 2;
  return align(16 + Math.ceil(shape.tokensMax / blockTokens) * 8 * words, 128);
}

function selectBytes(shape: EpShape, stride: number): number {
  const pairs = shape.localExpertsMax * shape.ranksMax;
  return pairs * shape.tokensMax * stride + align(2 * pairs * cellBytes, 128);
}

function scratchBytes(shape: EpShape, places: number): number {
  return (
    align(places * 4, 128) +
    align(shape.parities * shape.tokensMax * 4, 128) +
    align(shape.parities * (2 + slotsMax) * 4, 128) +
    align(shape.localExpertsMax * shape.ranksMax * 4, 128)
  );
}

function align(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}
