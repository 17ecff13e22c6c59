// SPDX-License-Identifier: Apache-2.0
// Host memory that threads of this process and its GPUs share. It begins at a page, because the system
// pins whole pages and the GPU copies whole lines.

import koffi from "koffi";

const pageBytes = 4_096;

/** @param bytes how many the array has; its pages are its own */
export function sharedHostBytes(bytes: number): Uint8Array<SharedArrayBuffer> {
  const shared = new SharedArrayBuffer(Math.ceil(bytes / pageBytes) * pageBytes + pageBytes);
  const into = Number(koffi.address(new Uint8Array(shared)) % BigInt(pageBytes));
  return new Uint8Array(shared, into === 0 ? 0 : pageBytes - into, bytes);
}
