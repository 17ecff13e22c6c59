// SPDX-License-Identifier: Apache-2.0
// The head of a safetensors file, held to the format before anybody reads a tensor by it: 8 bytes of
// length, JSON, then the tensors' bytes, all of which belong to exactly one tensor. Pure.
// Source: the format's description in the safetensors repository (README, "Format").

/** Bytes that say how long the JSON is, little-endian. */
export const safetensorsLengthBytes = 8;
/** Of the JSON, in bytes; the format's own limit. */
export const safetensorsJsonBytesMax = 100_000_000;

const dimensionsMax = 64;

/** By name, in bits. A type that is not listed came later: its tensors' ranges are checked, not their sizes. */
const bitsOf: ReadonlyMap<string, number> = new Map([
  ["F4", 4],
  ["F6_E2M3", 6],
  ["F6_E3M2", 6],
  ["BOOL", 8],
  ["U8", 8],
  ["I8", 8],
  ["F8_E5M2", 8],
  ["F8_E4M3", 8],
  ["F8_E5M2FNUZ", 8],
  ["F8_E4M3FNUZ", 8],
  ["F8_E8M0", 8],
  ["I16", 16],
  ["U16", 16],
  ["F16", 16],
  ["BF16", 16],
  ["I32", 32],
  ["U32", 32],
  ["F32", 32],
  ["I64", 64],
  ["U64", 64],
  ["F64", 64],
  ["C64", 64],
]);

/**
 * How many bytes from the beginning `breaksSafetensors` must see of a file of `size`.
 * @param first the file's first bytes, `safetensorsLengthBytes` or all there are
 */
export function safetensorsHeadBytes(first: Buffer, size: number): number {
  const json = jsonBytes(first, size);
  return safetensorsLengthBytes + (typeof json === "number" ? json : 0);
}

/** Why a file of `size` bytes that begins with `head` is not what its name says; null when it is. */
export function breaksSafetensors(head: Buffer, size: number): string | null {
  const length = jsonBytes(head, size);
  if (typeof length === "string") return length;
  const end = safetensorsLengthBytes + length;
  let header: unknown;
  try {
    const text = head.subarray(safetensorsLengthBytes, end);
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
  } catch {
    return "its header is not JSON in UTF-8";
  }
  if (!isObject(header)) return "its header is not an object";
  return breaksHeader(header, size - end);
}

/** The length of the JSON, or why there is none. */
function jsonBytes(first: Buffer, size: number): number | string {
  if (size < safetensorsLengthBytes + 2 || first.length < safetensorsLengthBytes)
    return "it is too short for a header";
  const length = first.readBigUInt64LE(0);
  const max = Math.min(safetensorsJsonBytesMax, size - safetensorsLengthBytes);
  if (length > max) return `its header has ${length} bytes, want at most ${max}`;
  return Number(length);
}

/** @param dataBytes what follows the header */
function breaksHeader(header: Record<string, unknown>, dataBytes: number): string | null {
  const ranges: { readonly name: string; readonly begin: number; readonly end: number }[] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") {
      if (!isObject(entry) || !Object.values(entry).every((text) => typeof text === "string"))
        return "its metadata is not a table of texts";
      continue;
    }
    const range = rangeOf(entry);
    if (typeof range === "string") return `tensor ${JSON.stringify(name.slice(0, 200))}: ${range}`;
    ranges.push({ name, ...range });
  }
  ranges.sort((left, right) => left.begin - right.begin || left.end - right.end);
  let end = 0;
  for (const range of ranges) {
    const name = JSON.stringify(range.name.slice(0, 200));
    if (range.begin < end) return `tensor ${name} overlaps another`;
    if (range.begin > end) return `${range.begin - end} bytes before tensor ${name} belong to none`;
    end = range.end;
  }
  return end === dataBytes ? null : `its tensors have ${end} bytes, ${dataBytes} follow the header`;
}

function rangeOf(entry: unknown): { begin: number; end: number } | string {
  if (!isObject(entry)) return "want an object";
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== "string") return "its dtype is not text";
  if (!areCounts(shape) || shape.length > dimensionsMax) return "its shape is not a list of counts";
  if (!areCounts(offsets) || offsets.length !== 2) return "its offsets are not two counts";
  const [begin = 0, end = 0] = offsets;
  if (begin > end) return "it ends before it begins";
  const bits = bitsOf.get(dtype);
  if (bits === undefined) return { begin, end };
  const bytes = Math.ceil((shape.reduce((product, count) => product * count, 1) * bits) / 8);
  if (bytes !== end - begin)
    return `${dtype}[${shape.join(",")}] has ${bytes} bytes, its offsets ${end - begin}`;
  return { begin, end };
}

function areCounts(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.every((one) => Number.isSafeInteger(one) && one >= 0);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
