// SPDX-License-Identifier: Apache-2.0
// The kernels of kernels/src/moe.cu for the fake GPU, with the same arithmetic.

import { fromBf16, toBf16 } from "../core/bf16.ts";
import { assert } from "../errors.ts";
import { at, type DevicePtr, type KernelParam } from "./driver.ts";
import type { FakeKernel } from "./fake.ts";
import type { FakeReach } from "./fake-memory.ts";

/** What FakeOptions.kernels takes to be a GPU with the relight_moe kernels. */
export const fakeMoeKernels: Readonly<Record<string, FakeKernel>> = {
  relight_moe_fill: (memory, { params }) => {
    const [out, count, seed, scale] = [
      address(params, 0),
      long(params, 1),
      word(params, 2),
      real(params, 3),
    ];
    const start = mix(seed);
    const values = Uint16Array.from({ length: count }, (_, i) => {
      const h = mix((Math.imul(i, 0x9e3779b1) + start) >>> 0);
      return toBf16(Math.fround(scale * Math.fround((h >>> 8) / 8_388_608 - 1)));
    });
    memory.write(out, new Uint8Array(values.buffer));
  },
  relight_moe_route: (memory, { grid, params }) => {
    const [logits, index, weights] = [address(params, 0), address(params, 1), address(params, 2)];
    const [experts, topk] = [word(params, 3), word(params, 4)];
    for (let token = 0; token < grid[0]; token += 1) {
      const row = new Float32Array(
        bytesAt(memory, at(logits, 4 * token * experts), 4 * experts).buffer,
      );
      const order = [...row.keys()].sort((a, b) => (row[b] ?? 0) - (row[a] ?? 0) || a - b);
      const chosen = order.slice(0, topk);
      const grown = chosen.map((expert) =>
        Math.exp((row[expert] ?? 0) - (row[chosen[0] ?? 0] ?? 0)),
      );
      const sum = grown.reduce((total, value) => total + value, 0);
      const shares = Float32Array.from(grown, (value) => value / sum);
      memory.write(at(index, 4 * token * topk), new Uint8Array(Int32Array.from(chosen).buffer));
      memory.write(at(weights, 4 * token * topk), new Uint8Array(shares.buffer));
    }
  },
  relight_moe_silu: (memory, { params }) => {
    const [from, to, rows, width] = [
      address(params, 0),
      address(params, 1),
      long(params, 2),
      word(params, 3),
    ];
    const input = bf16At(memory, from, 2 * rows * width);
    const out = Uint16Array.from({ length: rows * width }, (_, i) => {
      const at = Math.floor(i / width) * 2 * width + (i % width);
      const gate = input[at] ?? 0;
      return toBf16((gate / (1 + Math.exp(-gate))) * (input[at + width] ?? 0));
    });
    memory.write(to, new Uint8Array(out.buffer));
  },
  relight_moe_check: (memory, { grid, params }) => {
    const verdict = bytesAt(memory, address(params, 5), 24);
    const view = new DataView(verdict.buffer);
    for (let token = 0; token < grid[0]; token += 1) {
      const error = rowError(memory, params, token);
      view.setBigUint64(0, view.getBigUint64(0, true) + 1n, true);
      if (!(error < real(params, 9))) view.setBigUint64(8, view.getBigUint64(8, true) + 1n, true);
      if (error > view.getFloat32(16, true)) view.setFloat32(16, error, true);
    }
    memory.write(address(params, 5), verdict);
  },
};

export const fakeMoeImage: Uint8Array = Buffer.from(
  `.target sm_90\n${Object.keys(fakeMoeKernels)
    .map((name) => `.entry ${name}`)
    .join("\n")}\n`,
);

function rowError(memory: FakeReach, params: readonly KernelParam[], token: number): number {
  const [tokens, hidden, topk] = [word(params, 6), word(params, 7), word(params, 8)];
  const row = bf16At(memory, at(address(params, 0), 2 * token * hidden), hidden);
  const chosen = new Int32Array(
    bytesAt(memory, at(address(params, 2), 4 * token * topk), 4 * topk).buffer,
  );
  const shares = new Float32Array(
    bytesAt(memory, at(address(params, 3), 4 * token * topk), 4 * topk).buffer,
  );
  const wanted = new Float64Array(hidden);
  chosen.forEach((expert, k) => {
    if (bytesAt(memory, at(address(params, 4), expert), 1)[0] !== 0) return;
    const from = at(address(params, 1), 2 * (expert * tokens + token) * hidden);
    bf16At(memory, from, hidden).forEach((value, i) => {
      wanted[i] = (wanted[i] ?? 0) + (shares[k] ?? 0) * value;
    });
  });
  const error = Math.hypot(...wanted.map((value, i) => (row[i] ?? Number.NaN) - value));
  const size = Math.hypot(...wanted);
  return size === 0 ? error : error / size;
}

function mix(value: number): number {
  let h = value >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function bytesAt(memory: FakeReach, from: DevicePtr, bytes: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(memory.read(from, bytes));
}

function bf16At(memory: FakeReach, from: DevicePtr, count: number): Float64Array {
  return Float64Array.from(new Uint16Array(bytesAt(memory, from, 2 * count).buffer), fromBf16);
}

function address(params: readonly KernelParam[], index: number): DevicePtr {
  const param = params[index];
  assert(param !== undefined && "u64" in param, `parameter ${index} is a u64`);
  return param.u64 as DevicePtr;
}

function long(params: readonly KernelParam[], index: number): number {
  return Number(address(params, index));
}

function word(params: readonly KernelParam[], index: number): number {
  const param = params[index];
  assert(param !== undefined && "u32" in param, `parameter ${index} is a u32`);
  return param.u32;
}

function real(params: readonly KernelParam[], index: number): number {
  const param = params[index];
  assert(param !== undefined && "f32" in param, `parameter ${index} is an f32`);
  return param.f32;
}
