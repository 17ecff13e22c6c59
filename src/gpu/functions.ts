// SPDX-License-Identifier: Apache-2.0
// The one table of driver functions, and how one is called: by name, through the FFI, with its result
// checked. Out parameters are typed arrays passed as pointers, so that 64-bit values stay exact.
// Handles and addresses travel as integers. CUDA Driver API reference, version 12 and later.

import koffi, { type LibraryHandle } from "koffi";
import { RelightError } from "../errors.ts";
import { cudaError } from "./cuda-errors.ts";

/** Parameters as the C declaration spells them, with `void *` for whatever receives or gives bytes. */
export const functions = {
  cuInit: "uint32_t flags",
  cuDeviceGetCount: "void *count",
  cuDeviceGet: "void *device, int ordinal",
  cuDeviceGetName: "void *name, int bytes, int device",
  cuDeviceGetUuid_v2: "void *uuid, int device",
  cuDeviceTotalMem_v2: "void *bytes, int device",
  cuDeviceGetAttribute: "void *value, int attribute, int device",
  cuDeviceCanAccessPeer: "void *can, int device, int peer",
  cuDevicePrimaryCtxRetain: "void *context, int device",
  cuDevicePrimaryCtxRelease_v2: "int device",
  cuCtxSetCurrent: "uint64_t context",
  cuCtxEnablePeerAccess: "uint64_t peer, uint32_t flags",
  cuMemGetInfo_v2: "void *free, void *total",
  cuMemAlloc_v2: "void *address, size_t bytes",
  cuMemFree_v2: "uint64_t address",
  cuIpcGetMemHandle: "void *handle, uint64_t address",
  cuIpcOpenMemHandle_v2: "void *address, RelightIpcHandle handle, uint32_t flags",
  cuIpcCloseMemHandle: "uint64_t address",
  cuMemGetAllocationGranularity: "void *bytes, void *properties, int option",
  cuMemCreate: "void *handle, size_t bytes, void *properties, uint64_t flags",
  cuMemRelease: "uint64_t handle",
  cuMemAddressReserve:
    "void *address, size_t bytes, size_t alignment, uint64_t hint, uint64_t flags",
  cuMemAddressFree: "uint64_t address, size_t bytes",
  cuMemMap: "uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags",
  cuMemUnmap: "uint64_t address, size_t bytes",
  cuMemSetAccess: "uint64_t address, size_t bytes, void *access, size_t count",
  cuMemExportToShareableHandle: "void *out, uint64_t handle, int type, uint64_t flags",
  cuMemImportFromShareableHandle: "void *handle, uint64_t descriptor, int type",
  cuMemcpyDtoDAsync_v2: "uint64_t to, uint64_t from, size_t bytes, uint64_t stream",
  cuMemcpyBatchAsync_v2:
    "void *to, void *from, void *bytes, size_t count, void *attributes, void *indices, size_t attributeCount, uint64_t stream",
  cuMemcpyHtoDAsync_v2: "uint64_t to, void *from, size_t bytes, uint64_t stream",
  cuMemcpyDtoHAsync_v2: "void *to, uint64_t from, size_t bytes, uint64_t stream",
  cuMemHostRegister_v2: "void *memory, size_t bytes, uint32_t flags",
  cuMemHostUnregister: "void *memory",
  cuMemcpyDtoH_v2: "void *to, uint64_t from, size_t bytes",
  cuMemcpy2DAsync_v2: "void *copy, uint64_t stream",
  cuMemsetD8Async: "uint64_t to, uint8_t value, size_t bytes, uint64_t stream",
  cuStreamCreate: "void *stream, uint32_t flags",
  cuStreamDestroy_v2: "uint64_t stream",
  cuStreamQuery: "uint64_t stream",
  cuStreamWaitEvent: "uint64_t stream, uint64_t event, uint32_t flags",
  cuStreamBeginCapture_v2: "uint64_t stream, int mode",
  cuStreamEndCapture: "uint64_t stream, void *graph",
  cuEventCreate: "void *event, uint32_t flags",
  cuEventDestroy_v2: "uint64_t event",
  cuEventQuery: "uint64_t event",
  cuEventRecord: "uint64_t event, uint64_t stream",
  cuEventElapsedTime: "void *ms, uint64_t from, uint64_t to",
  cuModuleLoadData: "void *module, void *image",
  cuModuleUnload: "uint64_t module",
  cuModuleGetFunction: "void *kernel, uint64_t module, str name",
  cuFuncSetAttribute: "uint64_t kernel, int attribute, int value",
  cuLaunchKernel:
    "uint64_t kernel, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz, uint32_t shared, uint64_t stream, void *params, void *extra",
  cuLaunchCooperativeKernel:
    "uint64_t kernel, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz, uint32_t shared, uint64_t stream, void *params",
  cuGraphInstantiateWithFlags: "void *instance, uint64_t graph, uint64_t flags",
  cuGraphLaunch: "uint64_t instance, uint64_t stream",
  cuGraphExecDestroy: "uint64_t instance",
  cuGraphDestroy: "uint64_t graph",
} as const;

export type DriverFunction = keyof typeof functions;

type Argument = number | bigint | string | NodeJS.ArrayBufferView | null | IpcHandleStruct;

export interface IpcHandleStruct {
  readonly reserved: Uint8Array;
}

/** The driver library, opened at first use and once per thread. */
export class Libcuda {
  readonly #library: LibraryHandle;
  readonly #bound = new Map<DriverFunction, (...args: Argument[]) => number>();

  private constructor(library: LibraryHandle) {
    this.#library = library;
  }

  /** @throws device_absent when the machine has no driver or the driver has no device. */
  static open(file = "libcuda.so.1"): Libcuda {
    const library = load(file);
    // By value: the one struct that the driver's calls take this way.
    koffi.struct("RelightIpcHandle", { reserved: koffi.array("uint8_t", 64, "Typed") });
    const libcuda = new Libcuda(library);
    libcuda.call("cuInit", 0);
    return libcuda;
  }

  /** Calls and throws on any result but success. */
  call(name: DriverFunction, ...args: Argument[]): void {
    const result = this.result(name, ...args);
    if (result !== 0) throw cudaError(name, result);
  }

  /** Calls and gives the CUresult, for calls whose failure is an answer. */
  result(name: DriverFunction, ...args: Argument[]): number {
    return this.#bind(name)(...args);
  }

  /** The 64-bit value that the call writes through its first parameter. */
  out64(name: DriverFunction, ...args: Argument[]): bigint {
    const out = new BigUint64Array(1);
    this.call(name, out, ...args);
    return out[0] ?? 0n;
  }

  out32(name: DriverFunction, ...args: Argument[]): number {
    const out = new Int32Array(1);
    this.call(name, out, ...args);
    return out[0] ?? 0;
  }

  #bind(name: DriverFunction): (...args: Argument[]) => number {
    const known = this.#bound.get(name);
    if (known !== undefined) return known;
    const bound = this.#find(name);
    this.#bound.set(name, bound);
    return bound;
  }

  #find(name: DriverFunction): (...args: Argument[]) => number {
    try {
      return this.#library.func(`int ${name}(${functions[name]})`);
    } catch (cause) {
      throw new RelightError(
        "device_unsupported",
        `Cannot call ${name}: the installed driver does not have it`,
        { details: { call: name }, cause },
      );
    }
  }
}

function load(file: string): LibraryHandle {
  try {
    return koffi.load(file);
  } catch (cause) {
    throw new RelightError("device_absent", `Cannot open ${file}: it is not on this machine`, {
      details: { library: file },
      cause,
    });
  }
}
