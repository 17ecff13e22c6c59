// SPDX-License-Identifier: Apache-2.0
// A kernel's arguments as the driver wants them: values at aligned places, and an array of pointers to
// them. Both lie in one buffer, so that holding the pointers holds the values. The driver copies the
// values during the call.

import koffi from "koffi";
import type { KernelParam } from "./driver.ts";

const slotBytes = 16; // The largest alignment that a parameter of ours has.

/** The array of pointers; empty for a kernel without parameters. */
export function packParams(params: readonly KernelParam[]): Uint8Array {
  const offsets: number[] = [];
  let end = 0;
  for (const param of params) {
    offsets.push(end);
    end += Math.ceil(bytesOf(param) / slotBytes) * slotBytes;
  }
  const packed = Buffer.alloc(end + 8 * params.length);
  const base = koffi.address(packed);
  params.forEach((param, index) => {
    const offset = offsets[index] ?? 0;
    write(packed, offset, param);
    packed.writeBigUInt64LE(base + BigInt(offset), end + 8 * index);
  });
  return packed.subarray(end);
}

function bytesOf(param: KernelParam): number {
  if ("struct" in param) return param.struct.byteLength;
  return "u64" in param ? 8 : 4;
}

function write(values: Buffer, offset: number, param: KernelParam): void {
  if ("struct" in param) values.set(param.struct, offset);
  else if ("u64" in param) values.writeBigUInt64LE(param.u64, offset);
  else if ("u32" in param) values.writeUInt32LE(param.u32, offset);
  else if ("i32" in param) values.writeInt32LE(param.i32, offset);
  else values.writeFloatLE(param.f32, offset);
}
