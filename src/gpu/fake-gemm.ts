// SPDX-License-Identifier: Apache-2.0
// The fake GPU's matrix product: exact sums, rounded once.

import { fromBf16, toBf16 } from "../core/bf16.ts";
import { at, type Command } from "./driver.ts";
import type { FakeReach } from "./fake-memory.ts";

type Gemm = Extract<Command, { do: "gemm" }>;

export function multiply(memory: FakeReach, gemm: Gemm): void {
  const { rows, columns, depth, outType } = gemm;
  const bytesOut = outType === "bf16" ? 2 : 4;
  for (let b = 0; b < gemm.batch; b += 1) {
    const x = valuesAt(memory, at(gemm.x, 2 * b * gemm.xStride), rows * depth);
    const weights = valuesAt(memory, at(gemm.weights, 2 * b * gemm.weightsStride), columns * depth);
    const out = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        let sum = 0;
        for (let i = 0; i < depth; i += 1) {
          sum += (x[row * depth + i] ?? 0) * (weights[column * depth + i] ?? 0);
        }
        out[row * columns + column] = sum;
      }
    }
    const bytes = outType === "f32" ? out.buffer : Uint16Array.from(out, toBf16).buffer;
    memory.write(at(gemm.out, bytesOut * b * gemm.outStride), new Uint8Array(bytes));
  }
}

function valuesAt(memory: FakeReach, address: Gemm["x"], count: number): Float64Array {
  const bytes = Uint8Array.from(memory.read(address, 2 * count));
  return Float64Array.from(new Uint16Array(bytes.buffer), fromBf16);
}
