// SPDX-License-Identifier: Apache-2.0
// The upper half of an f32, as bit patterns: what experts compute in.

/** bf16 bit pattern to its value. */
export function fromBf16(bits: number): number {
  words[0] = bits << 16;
  return floats[0] ?? 0;
}

/** f32 or f64 to the nearest bf16, ties to even. */
export function toBf16(value: number): number {
  floats[0] = value;
  const bits = words[0] ?? 0;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

const floats = new Float32Array(1);
const words = new Uint32Array(floats.buffer);
