// SPDX-License-Identifier: Apache-2.0
// One tensor as it lies in memory: which bytes are its own. Strided, permuted, expanded, padded and
// empty tensors all come down to blocks of equally long rows at an equal pitch.

/** Bytes of one element. The names are torch's. */
export const itemBytes = {
  bool: 1,
  uint8: 1,
  int8: 1,
  float8_e4m3fn: 1,
  float8_e5m2: 1,
  float8_e4m3fnuz: 1,
  float8_e5m2fnuz: 1,
  float8_e8m0fnu: 1,
  float4_e2m1fn_x2: 1,
  uint16: 2,
  int16: 2,
  float16: 2,
  bfloat16: 2,
  uint32: 4,
  int32: 4,
  float32: 4,
  uint64: 8,
  int64: 8,
  float64: 8,
  complex64: 8,
  complex128: 16,
} as const;

export type Dtype = keyof typeof itemBytes;

export interface Tensor {
  readonly name: string;
  /** Where the engine keeps it: `derived` is neither parameter nor buffer, such as an absorbed weight. */
  readonly kind: "parameter" | "buffer" | "derived";
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** In elements, as torch counts. Not negative. */
  readonly stride: readonly number[];
  /** Index into the layout's allocations. */
  readonly allocation: number;
  readonly offsetBytes: number;
}

/** `rows` rows of `rowBytes` each, `pitchBytes` from one's beginning to the next one's. */
export interface RowBlock {
  /** From the beginning of the tensor's allocation. */
  readonly offsetBytes: number;
  readonly rowBytes: number;
  readonly rows: number;
  readonly pitchBytes: number;
}

export function elementCount(tensor: Pick<Tensor, "shape">): number {
  return tensor.shape.reduce((product, length) => product * length, 1);
}

/** From the first byte to behind the last, gaps included; 0 for a tensor without elements. */
export function spanBytes(tensor: Pick<Tensor, "shape" | "stride" | "dtype">): number {
  if (elementCount(tensor) === 0) return 0;
  const last = tensor.shape.reduce(
    (sum, length, axis) => sum + (length - 1) * (tensor.stride[axis] ?? 0),
    0,
  );
  return (last + 1) * itemBytes[tensor.dtype];
}

/** The tensor's own bytes, in the order of their addresses; none for a tensor without elements. */
export function rowBlocks(tensor: Tensor): RowBlock[] {
  const plainBytes = contiguousBytes(tensor);
  if (plainBytes !== null) return plainBytes === 0 ? [] : [oneRow(tensor.offsetBytes, plainBytes)];
  const { rowBytes, outer } = innermostRow(tensor);
  const rowsAxis = outer.pop();
  const starts = outer.reduce<number[]>(
    (offsets, { length, stepBytes }) =>
      offsets.flatMap((offset) => Array.from({ length }, (_, i) => offset + i * stepBytes)),
    [tensor.offsetBytes],
  );
  return starts.map((offsetBytes) => ({
    offsetBytes,
    rowBytes,
    rows: rowsAxis?.length ?? 1,
    pitchBytes: rowsAxis?.stepBytes ?? rowBytes,
  }));
}

/** How many rows `rowBlocks` would give, without making them. */
export function rowCount(tensor: Tensor): number {
  const plainBytes = contiguousBytes(tensor);
  if (plainBytes !== null) return plainBytes === 0 ? 0 : 1;
  return innermostRow(tensor).outer.reduce((product, { length }) => product * length, 1);
}

/**
 * Its size when it is stored row after row without a gap, as nearly all tensors are, else `null`. It saves
 * the general case's work, which at tens of thousands of tensors is the handshake's time.
 */
function contiguousBytes({ shape, stride, dtype }: Tensor): number | null {
  let elements = 1;
  for (let axis = shape.length - 1; axis >= 0; axis -= 1) {
    const length = shape[axis] ?? 1;
    if (length === 0) return 0;
    if (length !== 1 && stride[axis] !== elements) return isEmpty(shape) ? 0 : null;
    elements *= length;
  }
  return elements * itemBytes[dtype];
}

function isEmpty(shape: readonly number[]): boolean {
  return shape.includes(0);
}

function oneRow(offsetBytes: number, rowBytes: number): RowBlock {
  return { offsetBytes, rowBytes, rows: 1, pitchBytes: rowBytes };
}

interface Axis {
  readonly length: number;
  readonly stepBytes: number;
}

/** The longest run of bytes without a gap, and the axes along which it repeats, widest step first. */
function innermostRow(tensor: Tensor): { rowBytes: number; outer: Axis[] } {
  const item = itemBytes[tensor.dtype];
  // The order of axes decides how values are read, not which bytes they are; an expanded axis repeats
  // bytes that are already there.
  const axes = tensor.shape
    .map((length, axis) => ({ length, stepBytes: (tensor.stride[axis] ?? 0) * item }))
    .filter(({ length, stepBytes }) => length > 1 && stepBytes > 0)
    .sort((one, other) => other.stepBytes - one.stepBytes);
  let rowBytes = item;
  for (let axis = axes.at(-1); axis !== undefined && axis.stepBytes === rowBytes; ) {
    rowBytes *= axis.length;
    axes.pop();
    axis = axes.at(-1);
  }
  return { rowBytes, outer: axes };
}
