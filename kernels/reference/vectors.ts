// SPDX-License-Identifier: Apache-2.0
// Small worked examples of the references, for checkers in other languages (kernels/test/*.py).
// `node kernels/reference/vectors.ts` rewrites kernels/test/vectors.json; a test keeps it fresh.

import { writeFileSync } from "node:fs";
import { digest } from "./digest.ts";
import { quantise, type RowFormat, toBf16 } from "./quantise.ts";

const formats: readonly RowFormat[] = ["fp8", "fp8_pow2", "fp8_ue8m0"];
const sizes = [0, 1, 15, 16, 17, 4096, 70_001];

/** The byte that stands at `at` in every digest example. */
export function exampleByte(at: number): number {
  return (at * 131 + (at >>> 8) * 7 + 5) & 255;
}

export function vectors(): object {
  return { digest: sizes.map(digestExample), quantise: formats.map(quantiseExample) };
}

function digestExample(bytes: number): object {
  const seed = 0x0123456789abcdefn;
  const data = Uint8Array.from({ length: bytes }, (_, at) => exampleByte(at));
  return { bytes, seed: seed.toString(16), digest: digest(data, seed) };
}

/** 320 channels: the last group is half full; magnitudes run over many binades, with a zero group. */
function quantiseExample(format: RowFormat): object {
  const token = Uint16Array.from({ length: 320 }, (_, at) =>
    at < 128 ? toBf16(Math.sin(at * 1.7) * 2 ** ((at % 23) - 11)) : at < 256 ? 0 : toBf16(at / 7),
  );
  const { payload, scales } = quantise(token, format);
  return { format, token: [...token], payload: [...payload], scales: [...scales] };
}

if (import.meta.main) {
  const url = new URL("../test/vectors.json", import.meta.url);
  writeFileSync(url, `${JSON.stringify(vectors())}\n`);
}
