// SPDX-License-Identifier: Apache-2.0
// How much of a GPU's memory is in use, asked without a context: what a context costs can only be seen
// from outside it. Every answer may be `null`, for the management library is optional.

import koffi, { type LibraryHandle } from "koffi";

/** Bytes in use on the device with this UUID by everybody, or `null` when it cannot be read. */
export type MemoryUse = (uuid: string) => number | null;

const memoryStructBytes = 24;

export function openMemoryUse(file = "libnvidia-ml.so.1"): MemoryUse {
  try {
    return bind(koffi.load(file));
  } catch {
    // Without the library, or with one that lacks a function, the size of a context stays unknown.
    return () => null;
  }
}

function bind(library: LibraryHandle): MemoryUse {
  const init = library.func("int nvmlInit_v2()");
  const byUuid = library.func("int nvmlDeviceGetHandleByUUID(str uuid, void *device)");
  const memory = library.func("int nvmlDeviceGetMemoryInfo(uint64_t device, void *memory)");
  if (init() !== 0) return () => null;
  return (uuid) => {
    const device = new BigUint64Array(1);
    if (byUuid(uuid, device) !== 0) return null;
    const info = new BigUint64Array(memoryStructBytes / 8);
    if (memory(device[0], info) !== 0) return null;
    return Number(info[2]);
  };
}
