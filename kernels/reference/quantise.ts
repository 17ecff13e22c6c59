// SPDX-License-Identifier: Apache-2.0
// Defines the rows that dispatch sends: bf16 as it is, or e4m3 with one scale for each 128 channels.
// Every intermediate is rounded to f32 exactly where the kernel rounds it.

import { fromBf16, toBf16 } from "../../src/core/bf16.ts";

export { fromBf16, toBf16 };

export type RowFormat = "bf16" | "fp8" | "fp8_pow2" | "fp8_ue8m0";

/** One token as it travels. `scales` are f32 bit patterns, or exponent bytes for fp8_ue8m0. */
export type Row = {
  readonly payload: Uint8Array;
  readonly scales: Uint32Array;
  /** What the receiver computes with: payload times scale, exact in f64. */
  readonly values: Float64Array;
};

const groupChannels = 128;

/** Quantises one token given as bf16 bit patterns. */
export function quantise(token: Uint16Array, format: RowFormat): Row {
  const x = Float64Array.from(token, fromBf16);
  if (format === "bf16") {
    const payload = new Uint8Array(Uint16Array.from(token).buffer);
    return { payload, scales: new Uint32Array(0), values: x };
  }
  const payload = new Uint8Array(x.length);
  const values = new Float64Array(x.length);
  const scales = new Uint32Array(Math.ceil(x.length / groupChannels));
  for (let group = 0; group < scales.length; group++) {
    const channels = x.subarray(group * groupChannels, (group + 1) * groupChannels);
    const { multiply, stored } = scaleFor(magnitudeOf(channels), format);
    scales[group] = format === "fp8_ue8m0" ? bitsOf(stored) >>> 23 : bitsOf(stored);
    channels.forEach((value, i) => {
      const code = toE4m3(Math.fround(value * multiply));
      payload[group * groupChannels + i] = code;
      values[group * groupChannels + i] = fromE4m3(code) * stored;
    });
  }
  return { payload, scales, values };
}

function magnitudeOf(channels: Float64Array): number {
  return channels.reduce((most, value) => Math.max(most, Math.abs(value)), Math.fround(1e-4));
}

function scaleFor(magnitude: number, format: RowFormat): { multiply: number; stored: number } {
  const inverse = Math.fround(magnitude * Math.fround(1 / 448));
  if (format === "fp8") return { multiply: Math.fround(448 / magnitude), stored: inverse };
  const bits = bitsOf(inverse);
  const exponent = Math.min(254, (bits >>> 23) + ((bits & 0x7fffff) !== 0 ? 1 : 0));
  return { multiply: ofBits((254 - exponent) << 23), stored: ofBits(exponent << 23) };
}

/** Nearest e4m3, ties to even; beyond 448 it is 448. */
export function toE4m3(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x80 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return sign | 0x7f;
  let best = 0;
  for (let code = 1; code <= 0x7e; code++) {
    const nearer = Math.abs(fromE4m3(code) - size) < Math.abs(fromE4m3(best) - size);
    const tied = Math.abs(fromE4m3(code) - size) === Math.abs(fromE4m3(best) - size);
    if (nearer || (tied && code % 2 === 0)) best = code;
  }
  return sign | best;
}

/** 1 sign bit, 4 of exponent (bias 7), 3 of mantissa; no infinity. */
export function fromE4m3(code: number): number {
  const exponent = (code >> 3) & 15;
  const mantissa = code & 7;
  if ((code & 0x7f) === 0x7f) return Number.NaN;
  const size = exponent === 0 ? (mantissa / 8) * 2 ** -6 : (1 + mantissa / 8) * 2 ** (exponent - 7);
  return code & 0x80 ? -size : size;
}

function bitsOf(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0;
}

function ofBits(bits: number): number {
  return new Float32Array(Uint32Array.of(bits).buffer)[0] ?? 0;
}
